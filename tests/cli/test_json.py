"""`--json`: each verb has one documented type, and what it prints is of that type."""

import re
import sys

import pytest
import typer

from dml.cli.command import app
from dml.cli.output import emit, stdout
from dml.errors import CorruptArtifact
from dml.refs import DatasetRef
from dml.reports import DatasetList, Evaluation, Measured, ModelList
from tests.answers import DOCS, declared_types, load_hook

PAGE = (DOCS / "json.md").read_text()


def test_every_verb_takes_json():
    def leaves(command, words):
        inner = getattr(command, "commands", {})
        return {" ".join(words)} - {""} | {
            leaf for name in inner for leaf in leaves(inner[name], [*words, name])
        }

    assert declared_types().keys() == leaves(typer.main.get_command(app), [])


def test_the_page_names_the_types_of_every_verb():
    rows = re.findall(r"^\| (`dml .*?) \| (.*)", PAGE, re.MULTILINE)
    named = {
        verb: re.findall(r"\[(\w+)\]", kinds)
        for verbs, kinds in rows
        for verb in re.findall(r"`dml ([^`]+)`", verbs)
    }
    assert named == {verb: [kind.__name__ for kind in kinds] for verb, kinds in declared_types().items()}


def test_the_page_has_a_table_of_every_type_it_links_to():
    tables = load_hook("answers").types()
    there = {name.lower() for name in re.findall(r"^### (\w+)$", tables, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", PAGE + tables)) <= there
    assert "| `value` | number or `null` |" in tables
    assert "| `datasets` | list of [ListedDataset](#listeddataset) |" in tables


@pytest.mark.parametrize(
    "words",
    ["datasets", "indexes", "models", "presets", "presets show smoke", "schedule", "verify", "gc --dry-run"],
)
def test_an_answer_is_of_the_declared_type(dml, store, words):
    options = [] if words.startswith("presets") else ["--store", store]
    done = dml(*words.split(), *options, "--json")  # which compares it with the type
    assert done.status == 0, done.err


def test_an_answer_that_is_incomplete_holds_the_error_and_ends_with_its_status(capsys):
    stdout.set(sys.stdout)
    with pytest.raises(typer.Exit) as end:
        emit(DatasetList(datasets=[]), True, print, error=CorruptArtifact("x is damaged."))
    said = capsys.readouterr()
    assert DatasetList.model_validate_json(said.out) == DatasetList(datasets=[], error="x is damaged.")
    assert (end.value.exit_code, said.err) == (2, "error: x is damaged.\n")


def test_an_answer_that_is_whole_has_no_error(capsys):
    stdout.set(sys.stdout)
    emit(DatasetList(datasets=[]), True, print)
    assert capsys.readouterr().out == '{"datasets": []}\n'


def test_without_json_the_answer_is_shown(capsys):
    result = emit(ModelList(models=[], foreign=["theirs"]), False, lambda actual: print(actual.foreign[0]))
    assert (capsys.readouterr().out, result.foreign) == ("theirs\n", ["theirs"])


def test_a_metric_that_is_no_number_is_null_and_read_back(capsys):
    stdout.set(sys.stdout)
    emit(Evaluation(metrics={"nmi": Measured(value=float("nan"))}), True, print)
    said = capsys.readouterr().out
    assert '"value": null' in said
    assert str(Evaluation.model_validate_json(said).metrics["nmi"]) == "nan"


def test_a_version_in_a_list_has_the_keys_of_its_ref():
    (listed,) = (kind for kind in DatasetRef.__subclasses__() if kind.__name__ == "ListedDataset")
    assert listed.model_fields.keys() - DatasetRef.model_fields.keys() == {"created", "current"}

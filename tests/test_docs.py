"""What the pages say holds: links, files, names, verbs, settings and messages exist, and blocks run."""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from dml import config
from dml.cli.command import app
from dml.config.text import parts_of
from dml.presets import experiment
from tests.answers import load_hook

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md", "infra/README.md")),
    ROOT / "docker" / "README.md",
    *sorted(DOCS.rglob("*.md")),
]
EXAMPLES_RUN = [
    "start.md",
    "tutorials/folder.md",
    "tutorials/faces.md",
    "tutorials/losses.md",
    "vectors.md",
    "commands.md",
    "filters.md",
    "gallery.md",
]
"""Pages whose blocks run in one folder; the first makes what the others take."""
VERBS = typer.main.get_command(app)
FOLDERS = "dml|flows|tests|benchmarks|docs|infra|docker|examples"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Code(NamedTuple):
    """A piece of code on a page."""

    language: str
    text: str


def blocks(page: Path) -> list[Code]:
    matches = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Code(language, text) for language, text in matches]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    return [" ".join(text.split()) for text in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of every call of `dml` in blocks; in the text of those that are whole."""
    texts = [block.text for block in blocks(page) if block.language in ("console", "bash", "text")]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    inline = [re.sub(r"(\w+)(?:\|\w+)+", r"\1", code) for code in inline_code(page)]
    for line in [*lines, *(code for code in inline if "VERB" not in code)]:
        for command in re.split(r" && | \|\|? ", line.removeprefix("$ ")):
            if command.startswith("dml "):
                yield shlex.split(command.partition(" > ")[0], comments=True)[1:]


@every_page
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose(page)):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@every_page
def test_every_file_that_is_named_exists(page):
    for code in inline_code(page):
        if re.fullmatch(rf"(?:{FOLDERS})/[\w./-]+", code):
            assert (ROOT / code).exists(), code


@every_page
def test_every_name_of_python_exists(page):
    for code in inline_code(page):
        match = re.fullmatch(r"(?:python -m )?((?:dml|flows|benchmarks)(?:\.\w+)+)(?:\(\))?.*", code)
        if match and not re.fullmatch(r"dml\.(?:lock|toml|md)", code):
            assert resolves(match[1]), code


def resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            value = getattr(value, name, None)
        return value is not None
    return False


@every_page
def test_every_verb_takes_the_options_that_are_shown(page):
    for words in command_lines(page):
        verb, context = VERBS, typer.Context(VERBS, info_name="dml")
        if words[0].startswith("-"):
            continue
        while words and hasattr(verb, "commands") and not words[0].startswith("-"):
            assert words[0] in verb.commands, words
            verb, words = verb.commands[words[0]], words[1:]
        if words and "--help" not in words:  # the verb alone is only mentioned
            try:
                verb.make_context(verb.name, list(words), parent=context)
            except typer.TyperException as error:
                if type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):
                    raise  # `dml train --name` only mentions an option


def test_the_page_of_the_command_line_names_every_verb():
    named = inline_code(DOCS / "commands.md")
    assert {verb for verb in VERBS.commands if f"dml {verb}" not in named} == set()


@every_page
def test_every_preset_and_setting_of_a_shown_command_is_accepted(page):
    for verb, *words in command_lines(page):
        given = {"--set": [], "--preset": [], **options_of(words)}
        settings = [text for text in given["--set"] if "..." not in text and "KEY" not in text]
        if verb in ("train", "demo"):
            for preset in given["--preset"] or ["smoke"]:
                # A memory that begins at step 1,000 needs as many, and a batch must suit every one of them.
                assert experiment(preset).overridden([*ROOM_FOR_ANY, *settings]).name
        elif verb in SETTINGS_OF and settings:
            alone = verb == "report" and words[1].startswith("--")
            assert (config.DatasetReportConfig() if alone else SETTINGS_OF[verb]).overridden(settings)


@every_page
def test_every_setting_that_is_shown_alone_is_accepted_by_an_experiment(page):
    for code in inline_code(page):
        settings = options_of(shlex.split(code)).get("--set", []) if code.startswith("--set ") else []
        whole = [text for text in settings if re.fullmatch(r"(?:[\w-]+:)?\w+\.[\w.]+=(?!value$).+", text)]
        shown = [
            re.sub(r"^[\w-]+:", "", text) for text in whole if "..." not in text
        ]  # WHERE: is dml bench's
        assert experiment("resnet50-multi-similarity").overridden(shown).name


ROOM_FOR_ANY = ["training.num_steps=2000"]
SETTINGS_OF: dict[str, config.Part] = {
    "ingest": config.parse_ingest({"name": "shop", "source": "photos"}),
    "evaluate": config.EvaluationConfig(),
    "report": config.ReportConfig(),
}


def options_of(words: list[str]) -> dict[str, list[str]]:
    """Options to the values they are given; `--losses a b` has two."""
    options: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
        elif name:
            options.setdefault(name, []).append(word)
    return options


def module_calls(page: Path) -> Iterator[list[str]]:
    """The words of every `python -m` of ours: the module, then its options."""
    shown = "\n".join(block.text.replace("\\\n", " ") for block in blocks(page))
    for text in [*inline_code(page), *shown.splitlines()]:
        match = re.search(r"python -m ((?:dml|benchmarks|tests)(?:\.\w+)*(?: .*)?)$", text)
        if match:
            yield shlex.split(match[1], comments=True)
    if page.name == "speed.md":  # a table whose last column is what follows `python -m benchmarks.`
        for row in re.findall(r"^\|.*\| `([^`]+)` \|$", page.read_text(), re.MULTILINE):
            if not row.startswith("python"):
                yield shlex.split(f"benchmarks.{row}")


@every_page
def test_every_command_behind_a_figure_takes_the_options_that_are_shown(page):
    for module, *words in module_calls(page):
        if "--gpu" in words:
            module = "benchmarks.gpu"
            words.remove("--gpu")
        file = ROOT / Path(*module.split("."))
        source = (file / "__main__.py" if file.is_dir() else file.with_suffix(".py")).read_text()
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, (module, option)


def settings_of(page: Path) -> set[str]:
    """Paths of an experiment's settings that a page names, as `loss.margin`."""
    roots = "|".join(config.ExperimentConfig.model_fields)
    matches = (re.fullmatch(rf"((?:{roots})(?:\.\w+)+)(?:=.*)?", code) for code in inline_code(page))
    return {match[1] for match in matches if match}


def all_settings() -> set[str]:
    return set(paths_of(config.ExperimentConfig, ""))


def paths_of(part: Any, path: str) -> Iterator[str]:
    for name, field in part.model_fields.items():
        yield path + name
        for inner in parts_of(field.annotation):
            yield from paths_of(inner, f"{path}{name}.")


@every_page
def test_every_setting_that_is_named_exists(page):
    assert settings_of(page) <= all_settings()


@pytest.mark.parametrize("kind", config.loss_kinds())
def test_the_page_of_losses_knows_every_kind(kind):
    assert f", `{kind}` |" in (DOCS / "losses.md").read_text()


def test_the_primer_knows_every_mining():
    text = (DOCS / "primer.md").read_text()
    mined = set(re.findall(r"loss\.mining=([\w-]+)", text)) | {"random", "multi_similarity"}
    assert mined == set(config.loss_kinds()["triplet_margin"].model_fields["mining"].annotation.__args__)


def test_the_settings_page_has_every_setting_with_its_default():
    tables = load_hook("settings").tables()
    assert all_settings() - {path for path in all_settings() if path.endswith("kind")} <= {
        *re.findall(r"^\| `([\w.]+)`", tables, re.MULTILINE),
        *re.findall(r"^### `([\w.]+)`", tables, re.MULTILINE),
    }
    for kind in config.loss_kinds():
        assert f"**`loss.kind={kind}`**" in tables
    assert "| `loss.margin` | number or `null`, > 0, ≤ 4 | `0.2` |" in tables


def test_the_picture_of_the_house_has_every_room():
    (picture,) = (block.text for block in blocks(DOCS / "architecture.md") if "ORCHESTRATION" in block.text)
    there = {
        path.stem for path in (ROOT / "dml").iterdir() if path.stem[0] != "_" and path.suffix in ("", ".py")
    }
    drawn = set(re.findall(r"(?:^  |  )([a-z_]+)/?(?=  )", picture, re.MULTILINE))
    assert drawn == there


def test_a_word_of_the_glossary_is_defined_once_and_the_concepts_words_are_defined():
    defined = [
        term.strip().lower()
        for line in re.findall(r"^\*\*([^*]+)\*\*:", (DOCS / "glossary.md").read_text(), re.MULTILINE)
        for term in line.split(",")
    ]
    assert len(defined) == len(set(defined))
    text = (DOCS / "concepts.md").read_text()
    used = {term.lower() for term in re.findall(r"\*\*([^*]+)\*\*", text)} - {"bold"}
    words = {term for term in used if "." not in term and term not in defined}
    assert {word for word in words if word.rstrip("s") not in defined} == set()


def test_the_messages_of_troubleshooting_are_in_the_code():
    """Each quoted part is in the code, as one literal or across the literals of one message."""
    sources = [*ROOT.glob("dml/**/*.py"), *ROOT.glob("flows/**/*.py")]
    code = "\n".join(file.read_text() for file in sources)
    joined = re.sub(r'"\s*\n\s*f?"', "", code)
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    assert [message for message in rows if message not in joined] == []


TEXT = (DOCS / "commands.md").read_text()
SETTINGS = [
    setting
    for setting in re.findall(
        r"`([^`]+)`", TEXT[TEXT.index("| type of the field |") : TEXT.index("A different `kind`")]
    )
    if "=" in setting
]


def test_there_are_settings_of_every_sort():
    assert len(SETTINGS) >= 8


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_of_the_table_can_be_set(setting):
    late = ["training.num_steps=2000"] if setting.startswith("memory.") else []
    assert experiment("smoke").overridden([setting, *late]).name


def docstring_examples() -> list[str]:
    files = [file for file in sorted(ROOT.glob("dml/**/*.py")) if ">>> " in file.read_text()]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]


@pytest.mark.parametrize("module", docstring_examples())
def test_the_examples_in_docstrings_hold(module):
    import doctest

    done = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert done.attempted
    assert not done.failed


def run_blocks(page: Path, folder: Path) -> None:
    """Every `bash` and `python` block of a page, in order."""
    elsewhere = ("PREFECT_", "MLFLOW_", "DML_STORE")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(elsewhere)}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    for language, text in blocks(page):
        if language in ("bash", "python"):
            shell = ["bash", "-euo", "pipefail", "-c", text]
            command = shell if language == "bash" else [sys.executable, "-c", text]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{page.name}\n{text}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has done what docs/start.md says."""
    folder = tmp_path_factory.mktemp("reader")
    run_blocks(DOCS / EXAMPLES_RUN[0], folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EXAMPLES_RUN[1:])
def test_the_blocks_of_a_page_run(started, name):
    run_blocks(DOCS / name, started)


def test_no_page_has_a_block_that_is_not_run():
    for page in sorted(DOCS.rglob("*.md")):
        if str(page.relative_to(DOCS)) not in [*EXAMPLES_RUN, "looking.md"]:  # whose block folder.md has, too
            assert {block.language for block in blocks(page)} <= {"console", "text", ""}, page


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the dependency group docs")
def test_the_site_is_built_without_a_warning_and_fetches_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = "\n".join(page.read_text() for page in tmp_path.rglob("*.html"))
    assert (
        re.findall(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//|<link[^>]*href="(?:https?:)?//', pages)
        == []
    )
    assert 'id="dml.losses.MultiSimilarity"' in pages

"""`dml ingest` and `dml datasets` say what was held out, refused and found, and take every setting."""

import pytest

from dml.config import AttributeSplit, ClassSplit, NoSplit
from dml.data.dataset import find_dataset
from dml.storage import read_manifest
from tests.data.pictures import class_folders, picture, write


@pytest.fixture
def ingest(dml, tmp_path):
    """`dml ingest` of four class folders into a store of the test's own."""
    class_folders(tmp_path / "source")
    return lambda *options: dml(
        "ingest", str(tmp_path / "source"), "--name", "d", "--store", str(tmp_path / "store"), *options
    )


def test_an_ingest_says_what_it_read_and_what_changed(ingest, tmp_path):
    assert "20 images read" in ingest().out
    write(tmp_path / "source", {"class1/new.png": picture(900)})
    (tmp_path / "source" / "class2" / "0.png").unlink()
    changes = ingest("--json").json["changes"]
    assert (changes["added"], changes["removed"], changes["unchanged"]) == (1, 1, 19)
    assert "20 images read" in ingest("--reread").out


def test_a_label_is_corrected_listed_and_taken_back(ingest, dml, tmp_path):
    ingest()
    there = ("--store", str(tmp_path / "store"))
    done = dml("correct", "d", "class1/2.png", "class1/3.png", "--label", "class2", "--who", "ann", *there)
    assert done.status == 0, done.err
    assert "class1/3.png" in done.out
    assert "20 rows, 4 classes" in done.out
    listed = dml("corrections", "d", *there, "--json").json["corrections"]
    assert [(each["id"], each["label"], each["who"]) for each in listed] == [
        ("class1/2.png", "class2", "ann"),
        ("class1/3.png", "class2", "ann"),
    ]
    assert dml("correct", "d", "class1/2.png", "--remove", *there, "--json").json["dataset"]["rows"] == 19
    assert dml("correct", "d", "class1/3.png", "--revoke", *there).status == 0
    (left,) = dml("corrections", "d", *there, "--json").json["corrections"]
    assert (left["id"], left["label"], left["former_label"]) == ("class1/2.png", None, "class1")


@pytest.mark.parametrize("options", [[], ["--label", "x", "--remove"], ["--remove", "--revoke"]])
def test_a_correction_says_one_thing(ingest, dml, tmp_path, options):
    ingest()
    done = dml("correct", "d", "class1/2.png", *options, "--store", str(tmp_path / "store"))
    assert done.status == 2
    assert "one of --label LABEL, --remove and --revoke" in done.err


def split_of(tmp_path):
    return read_manifest(find_dataset(str(tmp_path / "store"), "d").uri)["split"]


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("classes:0.3", ClassSplit(test_fraction=0.3)),
        ("classes", ClassSplit()),
        ("none", NoSplit()),
        ("label:class1", AttributeSplit(name="label", test_values=("class1",))),
        ("label:class1,class2", AttributeSplit(name="label", test_values=("class1", "class2"))),
        ("label:2", AttributeSplit(name="label", test_values=2)),
    ],
)
def test_a_split_is_taken_as_it_is_typed(ingest, tmp_path, text, split):
    assert ingest("--split", text).status == 0
    assert split_of(tmp_path) == split.model_dump(mode="json")
    assert ingest("--split", str(split), "--json").json["outcome"] == "current"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("official", "must give a split for every sample"),
        ("x:²", r"must have the attribute 'x'"),
        ("year:1", "must have the attribute 'year'"),
        ("classes:many", "test_fraction"),
        ("halves", "split is invalid: it must be official"),
        (":3", "split is invalid: it must be official"),
        ("label:9", "must take at least 1 and leave at least 1 of the 4 values"),
        ("label:002", "must be one of class0, class1, class2, class3; got ['002']"),
        ("label:" + "9" * 5000, "must be one of class0, class1, class2, class3"),
        ("label:classX", "must be one of class0, class1, class2, class3"),
    ],
)
def test_a_split_that_cannot_be_is_one_message(ingest, text, says):
    done = ingest("--split", text)
    assert done.status == 2
    assert says in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("split", [NoSplit(), ClassSplit(test_fraction=0.25)], ids=str)
def test_a_split_is_a_setting_too_and_none_is_no_missing_one(ingest, tmp_path, split):
    assert ingest("--set", f"split={split}").status == 0
    assert split_of(tmp_path) == split.model_dump(mode="json")


def test_a_kind_that_is_not_given_is_not_nearly_none(ingest):
    done = ingest("--set", "split.test_fraction=0.25")
    assert done.status == 2
    assert "split.kind must be one of official, classes, attribute, none; got None." in done.err
    assert "Did you mean" not in done.err


@pytest.mark.parametrize("source", ["http://host/m.csv", "s3://", "gs://bucket/x"])
def test_a_source_that_can_be_none_is_called_a_source(dml, source):
    done = dml("ingest", source, "--name", "x")
    assert (done.status, done.err.count("\n")) == (2, 2)
    assert "error: A source must be" in done.err


@pytest.mark.parametrize("verb", ["datasets", "indexes", "models"])
def test_a_store_that_is_not_there_has_no_empty_list(dml, tmp_path, verb):
    named = dml(verb, "--store", str(tmp_path / "typo"))
    assert (named.status, named.err.count("\n")) == (2, 1)
    assert "A store must exist to be listed" in named.err
    assert not (tmp_path / "typo").exists()
    assert dml(verb).status == 0, "of a folder where nothing was made yet"
    assert "--store must be a folder" in dml(verb, "--store", "").err


def test_an_error_is_one_line_whatever_the_data_is_called(dml, tmp_path):
    write(tmp_path / "source", {"b\nc/2.png": b"", "d\ne/2.png": b""})
    done = dml("ingest", str(tmp_path / "source"), "--name", "d", "--store", str(tmp_path / "store"))
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith("error: ")
    assert r"b\nc/2.png" in done.err


def test_a_layout_that_does_not_exist_is_refused_with_those_that_do(ingest):
    done = ingest("--layout", "folders")
    assert done.status == 2
    assert "tiny-imagenet" in done.err


def test_too_many_refused_rows_are_exit_status_1_with_their_reasons_and_their_table(ingest, tmp_path):
    write(tmp_path / "source", {"class0/a.png": b"x", "class0/b.png": b"", "class1/same.png": picture(0)})
    done = ingest("--json")
    table = tmp_path / "store" / "quarantine" / "d.parquet"
    assert done.status == 1
    assert "1 not an image (class0/a.png" in done.json["error"]
    assert str(table) in done.json["error"]
    assert table.exists()
    allowed = ingest("--set", "max_quarantined=0.2", "--set", "quarantine_contradictions=true")
    assert allowed.status == 0
    assert "contradictory label" in allowed.out
    assert str(table) in allowed.out.replace("\n", "")


def test_what_is_held_out_is_said_and_nothing_to_do_too(ingest):
    first = ingest("--split", "classes:0.25")
    assert (
        "held out for test: 2 of 4 classes (50%), 10 of 20 images (50%), by split classes:0.25" in first.out
    )
    assert "nothing to do" not in first.out
    assert "listing" in first.err
    again = ingest()
    assert "nothing to do" in again.out


def test_the_list_marks_the_current_version_with_its_date_and_split_sizes(ingest, dml, tmp_path):
    ingest("--split", "none")
    ingest("--split", "classes:0.5")
    store = str(tmp_path / "store")
    listed = dml("datasets", "--store", store, "--json").json["datasets"]
    assert [version["current"] for version in listed] == [False, True]
    assert [sorted(version["splits"]) for version in listed] == [["train"], ["test", "train"]]
    assert listed[0]["created"] <= listed[1]["created"]
    shown = dml("datasets", "--store", store).out
    assert "10 rows, 2 classes" in shown
    assert listed[1]["created"][:10] in shown


def test_a_label_in_a_note_is_shown_and_not_obeyed(dml, tmp_path):
    write(tmp_path / "red", {"\u202ered/1.png": picture(1), "plain/1.png": picture(1)})
    done = dml("ingest", str(tmp_path / "red"), "--name", "red", "--store", str(tmp_path / "store"))
    assert done.status == 0
    assert r"(\u202ered, " in done.out
    assert "\u202e" not in done.out


def test_an_unusable_label_in_a_refusal_is_shown_and_not_obeyed(dml, tmp_path):
    write(tmp_path / "red", {"\x1b[31mred/1.png": picture(1), "plain/1.png": picture(1)})
    done = dml("ingest", str(tmp_path / "red"), "--name", "red", "--store", str(tmp_path / "store"))
    assert done.status == 1
    assert "unusable label" in done.out + done.err
    assert "\x1b[31m" not in done.out + done.err


@pytest.mark.parametrize("source", ["https://host/m.csv?sig=topsecret", "s3://bucket/m.csv?key=topsecret"])
def test_a_signature_in_a_sources_address_is_not_printed(dml, source):
    done = dml("ingest", source, "--name", "x", "--json")
    assert done.status == 2
    assert "topsecret" not in done.out + done.err

"""A correction by a person is a new version by a delta, which later ingests keep."""

import shutil
from pathlib import Path

import pytest

from dml import storage
from dml.config import ClassSplit, IngestConfig
from dml.data.corrected import CORRECTIONS
from dml.data.corrections import (
    correct_label,
    correct_labels,
    list_corrections,
    remove_item,
    revoke_correction,
)
from dml.data.dataset import find_dataset, fragments, list_versions, read_images, read_rows
from dml.data.ingest import ingest, ingest_source
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidSetting, MissingArtifact
from tests.data.pictures import class_folders, picture, write


def config(source, **settings):
    settings = {"split": ClassSplit(test_fraction=0.5), "rows_per_fragment": 6, **settings}
    return IngestConfig(name="d", source=str(source), **settings)


@pytest.fixture
def source(tmp_path):
    return class_folders(tmp_path / "source", classes=6, per_class=4)


@pytest.fixture
def store(source, tmp_path):
    ingest(config(source), str(tmp_path / "store"))
    return str(tmp_path / "store")


def labels(ref) -> dict[str, str]:
    table = read_rows(ref, columns=["id", "label"])
    return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_a_corrected_label_is_a_new_version_of_new_rows_in_the_former_files(store):
    former = find_dataset(store, "d")
    ref = correct_label(store, "d", "class1/2.png", "class4", who="ann")
    assert find_dataset(store, "d") == ref != former
    assert labels(ref) == {**labels(former), "class1/2.png": "class4"}
    assert labels(former)["class1/2.png"] == "class1", "the former version is as it was"
    new = {each.name for each in fragments(ref)} - {each.name for each in fragments(former)}
    assert len(new) == 1
    row = read_rows(ref).filter(read_rows(ref)["id"].to_numpy() == "class1/2.png").to_pylist()[0]
    assert storage.digest_of_bytes(read_images(ref, [row["position"]])[0]) == row["sha256"]
    same_class = next(r for r in read_rows(ref).to_pylist() if r["id"] == "class4/0.png")
    assert row["split"] == same_class["split"], "a class has one side"
    storage.verify(ref.uri)


def test_a_correction_needs_no_source(source, store):
    shutil.rmtree(source)
    assert correct_label(store, "d", "class1/2.png", "new class", who="ann").classes == 7


def test_it_is_recorded_who_corrected_what_and_when(store):
    correct_label(store, "d", "class1/2.png", " class4 ", who="ann")
    remove_item(store, "d", "class0/1.png", who="bob")
    first, second = list_corrections(store, "d")
    assert (first.id, first.label, first.former_label, first.who) == ("class0/1.png", None, "class0", "bob")
    assert (second.id, second.label, second.former_label) == ("class1/2.png", "class4", "class1")
    assert second.when.endswith("+00:00")


def test_the_next_ingest_gives_the_corrected_version(source, store):
    correct_label(store, "d", "class1/2.png", "class4", who="ann")
    corrected = remove_item(store, "d", "class0/1.png", who="ann")
    report = ingest_source(config(source), store)
    assert (report.dataset, report.outcome) == (corrected, "current")
    assert "1 labels and 1 items removed" in " ".join(report.notes)
    write(source, {"class3/new.png": picture(900)})
    assert labels(ingest(config(source), store)) == {**labels(corrected), "class3/new.png": "class3"}


def test_a_correction_that_is_taken_back_leaves_the_label_of_the_source(source, store):
    former = find_dataset(store, "d")
    correct_label(store, "d", "class1/2.png", "class4", who="ann")
    correct_label(store, "d", "class1/2.png", "class5", who="bob")
    assert revoke_correction(store, "d", "class1/2.png") == former
    assert list_corrections(store, "d") == []
    assert ingest(config(source), store) == former


def test_a_removed_item_returns_with_the_ingest_after_its_correction_is_taken_back(source, store):
    former = find_dataset(store, "d")
    removed = remove_item(store, "d", "class0/1.png", who="ann")
    assert revoke_correction(store, "d", "class0/1.png") == removed
    assert ingest(config(source), store) == former


def test_several_labels_are_one_version(store):
    correct_labels(store, "d", {f"class1/{n}.png": "class4" for n in range(4)}, who="ann")
    assert len(list_versions(store)) == 2
    assert find_dataset(store, "d").classes == 5


def test_a_label_that_an_item_has_already_changes_nothing(store):
    assert correct_label(store, "d", "class1/2.png", "class1", who="ann") == find_dataset(store, "d")
    assert (len(list_versions(store)), list_corrections(store, "d")) == (1, [])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda store: correct_label(store, "d", "nobody", "x", who="ann"), MissingArtifact, "nobody"),
        (lambda store: correct_label(store, "e", "class1/2.png", "x", who="ann"), MissingArtifact, "'e'"),
        (lambda store: correct_label(store, "d", "class1/2.png", " ", who="ann"), InvalidSetting, "no space"),
        (
            lambda store: correct_label(store, "d", "class1/2.png", "a\nb", who="ann"),
            InvalidSetting,
            r"U\+000A",
        ),
        (
            lambda store: correct_labels(
                store, "d", {"class1/2.png": "x", "class1/3.png": "\x1b[1m"}, who="a"
            ),
            InvalidSetting,
            r"U\+001B",
        ),
        (lambda store: correct_label(store, "d", "class1/2.png", "x", who=""), InvalidSetting, "who made it"),
        (lambda store: remove_item(store, "d@0123456789ab", "x", who="ann"), InvalidSetting, "Give the name"),
        (lambda store: revoke_correction(store, "d", "class1/2.png"), MissingArtifact, "was not"),
    ],
)
def test_what_cannot_be_corrected_is_named_and_nothing_changes(store, wrong, error, message):
    former = find_dataset(store, "d")
    with pytest.raises(error, match=message):
        wrong(store)
    assert (find_dataset(store, "d"), list_corrections(store, "d")) == (former, [])


def test_the_last_items_stay(store):
    from dml.data.corrections import remove_items

    with pytest.raises(InvalidSetting, match="at least one item"):
        remove_items(store, "d", list(labels(find_dataset(store, "d"))), who="ann")


def test_an_ingest_that_began_before_a_correction_does_not_undo_it(source, store):
    write(source, {"class3/new.png": picture(900)})
    with pytest.raises(IncompatibleArtifact, match="corrected meanwhile"):
        ingest_source(
            config(source), store, lambda *_: correct_label(store, "d", "class1/2.png", "class4", who="ann")
        )
    assert labels(ingest(config(source), store))["class1/2.png"] == "class4"


def test_a_damaged_list_of_corrections_is_named_and_not_ignored(source, store):
    correct_label(store, "d", "class1/2.png", "class4", who="ann")
    path = Path(store, "datasets", "d", CORRECTIONS)
    path.write_text(path.read_text().replace("class4", "class5"))
    with pytest.raises(CorruptArtifact, match=CORRECTIONS):
        ingest(config(source), store)


def test_in_an_official_split_an_item_comes_to_the_side_of_its_class(tmp_path):
    source, store = tmp_path / "source", str(tmp_path / "store")
    files = {f"{part}/{part}{c}/{n}.png": picture(10 * c + n + 100 * len(part)) for part in ("train", "test")
             for c in range(2) for n in range(3)}  # fmt: skip
    write(source, files)
    ingest(IngestConfig(name="d", source=str(source)), store)
    ref = correct_label(store, "d", "train/train0/1.png", "test1", who="ann")
    (row,) = [row for row in read_rows(ref).to_pylist() if row["id"] == "train/train0/1.png"]
    assert row["split"] == "test"
    assert ingest(IngestConfig(name="d", source=str(source)), store) == ref


def test_a_class_that_only_corrected_items_have_keeps_its_split_whatever_the_order_of_the_rows(tmp_path):
    source, store = tmp_path / "source", str(tmp_path / "store")
    rows = [
        (f"{c}_{n}.png", f"c{c}", "train" if c < 2 else "test", 10 * c + n)
        for c in range(4)
        for n in range(3)
    ]
    write(source, {name: picture(seed) for name, _, _, seed in rows})

    def ingested(order):
        lines = [",".join(row[:3]) for row in order]
        write(source, {"all.csv": "\n".join(["image,label,split", *lines])})
        return ingest(IngestConfig(name="d", source=str(source / "all.csv")), store)

    def splits(ref) -> set[str]:
        return {row["split"] for row in read_rows(ref).to_pylist() if row["label"] == "new"}

    ingested(rows)
    before = splits(correct_labels(store, "d", {"0_0.png": "new", "3_0.png": "new"}, who="ann"))
    assert len(before) == 1
    assert splits(ingested(rows)) == splits(ingested(rows[::-1])) == before
    assert splits(ingested(rows[1:])) == splits(ingested(rows[:-3] + rows[-2:])) == before

"""A dataset of which a version's manifest is damaged: an ingest makes it again, and says from what."""

from pathlib import Path

import pytest

from dml import storage
from dml.config import ClassSplit, IngestConfig
from dml.data.class_splits import CLASSES
from dml.data.dataset import find_dataset, read_rows
from dml.data.ingest import ingest_source
from dml.data.last_ingest import last_ingest
from dml.errors import CorruptArtifact, IncompatibleArtifact
from dml.lineage import remove_named
from dml.refs import DatasetRef
from dml.reports import IngestReport
from flows.verify import verify_flow
from tests.data.pictures import class_folders, picture, write
from tests.data.test_delta import settle


@pytest.fixture
def source(tmp_path) -> Path:
    folder = class_folders(tmp_path / "source", classes=6, per_class=2)
    settle()
    return folder


@pytest.fixture
def store(tmp_path) -> str:
    return str(tmp_path / "store")


def taken_in(source: Path, store: str, **settings) -> IngestReport:
    return ingest_source(IngestConfig(name="d", source=str(source), num_workers=1, **settings), store)


def grown(source: Path, store: str) -> list[DatasetRef]:
    """Two versions, of which the second has a class that the source has lost again."""
    first = taken_in(source, store, split=ClassSplit(test_fraction=0.4)).dataset
    write(source, {f"class{label}/0.png": picture(700 + label) for label in (6, 7, 8)})
    settle()
    return [first, taken_in(source, store).dataset]


def damage(ref: DatasetRef, content: bytes = b"{") -> None:
    storage.write_bytes(storage.join(ref.uri, storage.MANIFEST), content)


def splits(ref: DatasetRef) -> dict[str, str]:
    table = read_rows(ref, columns=["label", "split"])
    return dict(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"files": {}}'])
def test_the_only_version_is_made_again_from_its_source(source, store, content):
    ref = taken_in(source, store, split=ClassSplit(test_fraction=0.4)).dataset
    before = splits(ref)
    damage(ref, content)
    report = taken_in(source, store)
    assert (report.outcome, report.dataset) == ("repaired", ref)
    assert "every image is read again" in " ".join(report.notes)
    assert report.changes.files_read == 12
    assert splits(report.dataset) == before
    storage.verify(ref.uri)


def test_the_current_version_is_made_again_by_what_the_version_before_it_has(source, store):
    first, second = grown(source, store)
    before = splits(second)
    damage(second)
    report = taken_in(source, store)
    assert (report.outcome, report.dataset.fingerprint) == ("repaired", second.fingerprint)
    assert f"compared with {first}, the latest that can be read" in " ".join(report.notes)
    assert report.changes.files_read == 3, "those of the new classes"
    assert splits(report.dataset) == before
    storage.verify(second.uri)
    assert not any("damaged" in note for note in taken_in(source, store).notes)


def test_classes_of_the_damaged_version_keep_their_split_also_where_they_return_later(source, store):
    _, second = grown(source, store)
    before = splits(second)
    damage(second)
    aside = source.parent / "aside"
    (source / "class7").rename(aside)
    assert "class7" not in splits(taken_in(source, store).dataset)
    aside.rename(source / "class7")
    assert splits(taken_in(source, store).dataset) == before


def test_that_classes_may_change_their_split_is_said_where_their_table_is_damaged_too(source, store):
    _, second = grown(source, store)
    damage(second)
    storage.write_bytes(storage.join(second.uri, CLASSES), b"no table")
    notes = " ".join(taken_in(source, store).notes)
    assert f"classes that only {second} had may change their split" in notes


def test_a_pointer_that_was_removed_as_its_error_says_lets_no_class_change_its_split(source, store):
    _, second = grown(source, store)
    before = splits(second)
    pointer = storage.join(store, "datasets", "d", storage.POINTER)
    storage.write_bytes(pointer, b"{")
    with pytest.raises(CorruptArtifact, match="Remove the file and make the version again"):
        taken_in(source, store)
    storage.delete(pointer)
    report = taken_in(source, store)
    assert (report.outcome, report.dataset) == ("found", second)
    assert report.changes.files_read == 0
    assert splits(report.dataset) == before


def test_the_latest_ingest_is_known_without_the_manifest(source, store):
    ref = taken_in(source, store).dataset
    known = last_ingest(store, "d")
    damage(ref)
    assert last_ingest(store, "d") == known


def states(store: str, *, repair: bool) -> list[str]:
    return [each.state for each in verify_flow.fn(repair=repair, store=store).artifacts]


def test_verify_repairs_a_current_version_without_a_manifest_and_is_content_after_it(source, store):
    first, second = grown(source, store)
    damage(second)
    assert sorted(states(store, repair=False)) == ["damaged", "ok"]
    assert sorted(states(store, repair=True)) == ["made again", "ok"]
    assert states(store, repair=False) == ["ok", "ok"]
    assert find_dataset(store, "d").fingerprint == second.fingerprint
    assert find_dataset(store, str(first)) == first


def test_a_damaged_former_version_is_removed_by_the_command_that_verify_says(source, store):
    first, second = grown(source, store)
    damage(first)
    assert f"dml rm dataset {first}." in " ".join(states(store, repair=True))
    assert remove_named(store, "dataset", str(first)) == [str(first)]
    assert states(store, repair=False) == ["ok"]
    assert find_dataset(store, "d") == second


def test_a_damaged_version_whose_source_has_changed_is_replaced_and_can_be_removed(source, store):
    _, second = grown(source, store)
    damage(second)
    write(source, {"class1/new.png": picture(900)})
    (damaged,) = (state for state in states(store, repair=True) if state != "ok")
    latest = find_dataset(store, "d")
    assert damaged.startswith(f"damaged, and cannot be made again: its source gives {latest} now")
    remove_named(store, "dataset", str(second))
    assert set(states(store, repair=False)) == {"ok"}


def test_without_pointer_and_manifest_nothing_says_how_the_dataset_was_split(source, store):
    ref = taken_in(source, store).dataset
    damage(ref)
    storage.delete(storage.join(store, "datasets", "d", storage.POINTER))
    with pytest.raises(CorruptArtifact, match="dml rm dataset d`, and ingest it with --split"):
        taken_in(source, store)
    remove_named(store, "dataset", "d")
    assert taken_in(source, store).outcome == "made"


def test_a_version_of_another_schema_is_not_passed_over(source, store):
    ref = taken_in(source, store).dataset
    manifest = storage.read_manifest(ref.uri)
    storage.write_manifest(ref.uri, {**manifest, "ref": {**manifest["ref"], "schema_version": 99}})
    with pytest.raises(IncompatibleArtifact, match="schema version"):
        taken_in(source, store)

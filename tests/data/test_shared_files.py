"""Files that several versions of a dataset share are kept as long as one of them is there, and no longer."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dml import storage
from dml.config import IngestConfig, NoSplit
from dml.data.corrections import correct_label, list_corrections, remove_item
from dml.data.dataset import find_dataset, fragments, list_datasets, read_images, read_rows
from dml.data.forgotten import add_forgotten
from dml.data.ingest import ingest
from dml.data.thumbnails import read_thumbnails
from dml.errors import IncompatibleArtifact
from dml.integrity import check_store
from dml.lineage import remove, remove_named, unneeded
from flows.forget import forget_flow
from flows.verify import repaired
from tests.data.pictures import class_folders, picture, write

NO_GRACE = timedelta(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path):
    return class_folders(tmp_path / "source", classes=10, per_class=4)


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "store")


def taken_in(source, store):
    config = IngestConfig(
        name="d", source=str(source), split=NoSplit(), rows_per_fragment=8, rows_per_group=3
    )
    return ingest(config, store)


def names(ref) -> set[str]:
    return {fragment.name for fragment in fragments(ref)}


def stored(store) -> set[str]:
    return set(os.listdir(Path(store, "datasets", "d", "fragments")))


def is_whole(ref) -> bool:
    rows, images = read_rows(ref, columns=["sha256"]), read_images(ref, range(ref.rows))
    return [storage.digest_of_bytes(image) for image in images] == rows["sha256"].to_pylist()


def test_gc_removes_the_files_that_only_removed_versions_have(source, store):
    first = taken_in(source, store)
    for number in range(4):
        (source / "class3" / f"{number}.png").unlink()
        (source / "class4" / f"{number}.png").unlink()
    second = taken_in(source, store)
    assert names(first) - names(second)
    assert names(first) & names(second)
    removals = unneeded(store, [], keep=1, grace=NO_GRACE)
    listed = {Path(removal.uri).name for removal in removals if removal.kind == "fragment"}
    assert listed == names(first) - names(second)
    remove(removals)
    assert stored(store) == names(second)
    assert is_whole(second)
    assert all(not checked.damaged for checked in check_store(store))


def test_gc_leaves_files_that_a_running_ingest_has_just_put_there(source, store):
    taken_in(source, store)
    young = Path(store, "datasets", "d", "fragments", f"fragment-{'0' * 64}.parquet")
    young.write_bytes(b"x")
    assert unneeded(store, [], grace=NO_GRACE) == []
    later = datetime.now(UTC) + timedelta(days=2)
    assert [removal.uri for removal in unneeded(store, [], grace=NO_GRACE, now=later)] == [str(young)]


def test_gc_keeps_all_files_beside_a_damaged_manifest(source, store):
    first = taken_in(source, store)
    (source / "class3" / "0.png").unlink()
    second = taken_in(source, store)
    before = stored(store)
    Path(first.uri, "manifest.json").write_text("damaged")
    remove(unneeded(store, [], keep=1, grace=NO_GRACE))
    assert stored(store) == before
    assert is_whole(second)


def test_gc_does_not_take_a_version_for_damaged_that_is_published_while_it_reads(source, store):
    taken_in(source, store)
    published = []

    def registered():  # is asked for once the artefacts are listed
        (source / "class3" / "0.png").unlink()
        published.append(taken_in(source, store))
        yield from ()

    removals = unneeded(store, registered(), keep=2, grace=NO_GRACE)
    assert removals == []
    remove(removals)
    assert is_whole(published[0])


def test_a_version_that_became_current_meanwhile_keeps_its_files(source, store):
    first = taken_in(source, store)
    removed = [source / "class3" / f"{number}.png" for number in range(4)]
    contents = [path.read_bytes() for path in removed]
    for path in removed:
        path.unlink()
    taken_in(source, store)
    removals = unneeded(store, [], keep=1, grace=NO_GRACE)
    for path, content in zip(removed, contents, strict=True):
        path.write_bytes(content)
    assert taken_in(source, store) == first
    remove(removals)
    assert is_whole(find_dataset(store, "d"))


def test_a_removed_version_takes_only_its_own_files_along(source, store):
    first = taken_in(source, store)
    for number in range(4):
        (source / "class3" / f"{number}.png").unlink()
    second = taken_in(source, store)
    remove_named(store, "dataset", f"d@{first.version}")
    assert stored(store) == names(second)
    assert is_whole(second)
    remove_named(store, "dataset", "d")
    assert not Path(store, "datasets", "d").exists()


def test_a_damaged_file_is_reported_for_every_version_that_has_it_and_made_again(source, store):
    first = taken_in(source, store)
    write(source, {"class1/more.png": picture(900)})
    second = taken_in(source, store)
    shared = sorted(names(first) & names(second))[0]
    path = Path(store, "datasets", "d", "fragments", shared)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    damaged = [checked for checked in check_store(store) if checked.damaged]
    assert {checked.uri for checked in damaged} == {first.uri, second.uri}
    assert {Path(name).name for checked in damaged for name in checked.damaged} == {shared}
    states = repaired(store, damaged)
    assert states[second.uri] == "made again"
    assert all(not checked.damaged for checked in check_store(store))
    assert is_whole(first)
    assert is_whole(second)


def files_with(content: bytes, *folders) -> list[Path]:
    below = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return [path for path in below if content in path.read_bytes()]


def test_a_forgotten_item_is_in_no_file_also_where_it_was_only_listed_as_deleted(source, store, tmp_path):
    gone = source / "class3" / "1.png"
    trace = gone.read_bytes()
    former = taken_in(source, store)
    read_thumbnails(former)
    kept = remove_item(store, "d", "class3/1.png", who="ann")
    correct_label(store, "d", "class4/2.png", "class5", who="ann")
    remove_named(store, "dataset", f"d@{former.version}")
    assert files_with(trace, store), "its bytes are in a file that the versions share"
    order = read_rows(kept, columns=["id"])["id"].to_pylist()
    forget_flow.fn("d", ["class3/1.png"], store)
    assert files_with(trace, store) == []
    assert files_with(b"class3/1.png", store, tmp_path / "cache") == []
    assert read_rows(kept, columns=["id"])["id"].to_pylist() == order, "the others stay where they were"
    for ref in list_datasets(store):
        assert is_whole(ref)
        storage.verify(ref.uri)
    assert len(read_thumbnails(kept)) == 39
    assert taken_in(source, store) == find_dataset(store, "d")


def test_a_file_whose_rows_are_forgotten_stays_for_no_version(source, store):
    trace = (source / "class3" / "1.png").read_bytes()
    taken_in(source, store)
    write(source, {"class1/more.png": picture(900)})
    taken_in(source, store)
    forget_flow.fn("d", ["class3/1.png"], store)
    assert files_with(trace, store) == []
    refs = list_datasets(store)
    assert stored(store) == set().union(*map(names, refs))
    assert sorted(ref.rows for ref in refs) == [39, 40]
    assert all(map(is_whole, refs))


def test_an_ingest_that_fails_beside_a_forget_leaves_no_file_with_what_was_forgotten(source, store):
    taken_in(source, store)
    write(source, {"class0/new.png": picture(900), "class0/0.png": picture(901)})
    config = IngestConfig(
        name="d", source=str(source), split=NoSplit(), rows_per_fragment=8, rows_per_group=3
    )
    with pytest.raises(IncompatibleArtifact, match="Nothing was published; start again"):
        ingest(config, store, lambda *_: forget_flow.fn("d", ["class0/0.png"], store))
    assert files_with(b"class0/0.png", store) == []


def test_a_correction_while_items_are_forgotten_does_not_bring_them_back(source, store):
    before = taken_in(source, store)
    add_forgotten(store, "d", ["class3/1.png"])  # what `dml forget` does first
    with pytest.raises(IncompatibleArtifact, match="1 items of d were forgotten meanwhile"):
        correct_label(store, "d", "class4/0.png", "class2", who="ann")
    assert find_dataset(store, "d") == before
    assert list_corrections(store, "d") == []
    assert stored(store) == names(before)
    forget_flow.fn("d", ["class3/1.png"], store)
    ref = correct_label(store, "d", "class4/0.png", "class2", who="ann")
    assert "class3/1.png" not in read_rows(ref)["id"].to_pylist()

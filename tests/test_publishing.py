"""Processes that publish at the same time leave a consistent store, on a local disk and on S3."""

import multiprocessing
import zlib
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from dml import storage
from dml.config import IngestConfig
from dml.data.dataset import list_versions, read_rows
from dml.data.forgotten import add_forgotten, forgotten_ids
from dml.data.ingest import ingest_source
from dml.errors import DmlError, IncompatibleArtifact
from dml.lineage import remove, unneeded
from tests.data.pictures import picture, write

ROUNDS = 8
_SPAWNING = multiprocessing.get_context("spawn")


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3_store")


def at_once(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work` in two processes, with the process number and a shared barrier."""
    barrier = _SPAWNING.Barrier(2)
    processes = [_SPAWNING.Process(target=work, args=(number, barrier, *arguments)) for number in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(280)
    assert [process.exitcode for process in processes] == [0, 0]


def move_pointers(number: int, barrier: Barrier, parent: str, versions: list[str]) -> None:
    for version in versions[number::2]:
        barrier.wait(240)
        storage.point(parent, version)


@pytest.mark.slow
def test_two_processes_that_move_a_pointer_at_once_lose_no_version(store):
    parent = storage.join(store, "things", "one")
    versions = [f"v{number}" for number in range(2 * ROUNDS)]
    for version in versions:
        storage.write_manifest(storage.join(parent, version), {"files": {}})
    at_once(move_pointers, parent, versions)
    assert {storage.current(parent), *storage.former_versions(parent)} == set(versions)


def publish_versions(number: int, barrier: Barrier, parent: str) -> None:
    for round_ in range(ROUNDS):
        final = storage.join(parent, f"v{round_}")
        with storage.staged(final) as staged:
            for name in "abcdefgh":
                storage.write_bytes(storage.join(staged, name), f"{number} {name}".encode())
            barrier.wait(240)
            storage.publish(staged, final, {"kind": "test"})


@pytest.mark.slow
def test_two_processes_that_publish_one_artefact_at_once_do_not_mix_their_files(store):
    parent = storage.join(store, "things", "one")
    at_once(publish_versions, parent)
    for round_ in range(ROUNDS):
        storage.verify(storage.join(parent, f"v{round_}"))
    assert storage.list_names(parent) == [f"v{round_}" for round_ in range(ROUNDS)]


def ingest_at_once(number: int, barrier: Barrier, store: str, sources: list[str], refused: str) -> None:
    for round_ in range(ROUNDS):
        config = IngestConfig(name=f"d{round_}", source=sources[number], num_workers=1)
        try:
            ingest_source(config, store, lambda *_: barrier.wait(240))
        except IncompatibleArtifact:
            Path(refused, f"{round_}-{number}").touch()


def labelled(folder: Path, labels: list[str]) -> str:
    return str(write(folder, {f"{label}/0.png": picture(zlib.crc32(label.encode())) for label in labels}))


@pytest.mark.slow
def test_two_ingests_at_once_put_no_class_on_two_sides(store, tmp_path):
    sources = [
        labelled(tmp_path / "first", list("abcdefghijkl")),
        labelled(tmp_path / "second", [*"abcd", *(f"z{number}" for number in range(9))]),
    ]
    refused = tmp_path / "refused"
    refused.mkdir()
    at_once(ingest_at_once, store, sources, str(refused))
    for round_ in range(ROUNDS):
        parent = storage.join(store, "datasets", f"d{round_}")
        pointed = [storage.current(parent), *storage.former_versions(parent)]
        used = [
            v.ref for v in list_versions(store) if v.ref.name == f"d{round_}" and v.ref.version in pointed
        ]
        sides: dict[str, set[str]] = {}
        for ref in used:
            for row in read_rows(ref, columns=["label", "split"]).to_pylist():
                sides.setdefault(row["label"], set()).add(row["split"])
        assert all(len(splits) == 1 for splits in sides.values())
        assert len(used) + len(list(refused.glob(f"{round_}-*"))) == 2


def forget_ids(number: int, barrier: Barrier, store: str) -> None:
    for round_ in range(ROUNDS):
        barrier.wait(240)
        add_forgotten(store, "faces", [f"{number}/{round_}"])


@pytest.mark.slow
def test_two_processes_that_forget_at_once_are_both_recorded(store):
    at_once(forget_ids, store)
    assert len(forgotten_ids(store, "faces")) == 2 * ROUNDS


def test_an_item_forgotten_during_an_ingest_is_not_published(store, tmp_path):
    source = labelled(tmp_path / "source", list("abcdefgh"))
    config = IngestConfig(name="d", source=source, num_workers=1)
    with pytest.raises(IncompatibleArtifact, match="1 items of d were forgotten meanwhile"):
        ingest_source(config, store, lambda *_: add_forgotten(store, "d", ["a/0.png"]))
    assert list_versions(store) == []
    assert ingest_source(config, store).dataset.rows == 7


def collect_at_once(number: int, barrier: Barrier, stores: list[str]) -> None:
    for store in stores:
        barrier.wait(240)
        remove(unneeded(store, [], keep=1, grace=timedelta(0)))


@pytest.mark.slow
def test_two_processes_that_collect_at_once_remove_the_same(tmp_path):
    stores = [str(tmp_path / f"store-{round_}") for round_ in range(ROUNDS)]
    for store in stores:
        storage.mark_store(store)
        parent = storage.join(store, "indexes", "shelves")
        for version in range(40):
            folder = storage.make_folder(storage.join(parent, f"v{version}"))
            for file in range(30):
                Path(folder, f"{file}").write_bytes(b"1")
            storage.seal(folder, {"ref": {}})
            storage.point(parent, f"v{version}")
    at_once(collect_at_once, stores)
    for store in stores:
        assert storage.list_entries(storage.join(store, "indexes", "shelves"))[-1].name == "v39"
        assert len(storage.list_entries(storage.join(store, "indexes", "shelves"))) == 2


def test_a_file_that_another_process_wrote_first_stays(store):
    uri = storage.join(store, "things", "part")
    storage.write_new(uri, b"first")
    storage.write_new(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert [entry.name for entry in storage.list_entries(storage.join(store, "things"))] == ["part"]


def test_a_removed_version_does_not_become_current(store):
    parent = storage.join(store, "things", "one")
    with pytest.raises(DmlError, match=r"must exist to become current; .*/v1 does not"):
        storage.point(parent, "v1")
    assert storage.current(parent) is None

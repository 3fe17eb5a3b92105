"""What is forgotten is erased from every version of index and dataset, and comes back by none."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from pyarrow import compute

from dml import storage
from dml.config import IndexConfig
from dml.data.dataset import read_rows
from dml.embedding.embed import embed
from dml.embedding.external import import_vectors
from dml.embedding.forget import vectors_containing
from dml.embedding.imported import find_vectors, list_vectors
from dml.embedding.table import read_embeddings
from dml.errors import IncompatibleArtifact, MissingArtifact
from dml.integrity import check_store
from dml.retrieval.build import build_index
from dml.retrieval.gallery import Gallery, collect_changes, forgotten_ids, publish_index
from dml.retrieval.index import list_versions, published_index
from dml.serving.searcher import Searcher
from flows.forget import erase_forgotten, forget_enrolled_flow, forget_flow
from tests.embedding.parts import make_dataset, make_package, png
from tests.retrieval.gallery.people import ROWS, items_of, publish, vectors_of


@pytest.fixture
def shop(tmp_path):
    """A store with a dataset, its index, and two versions of that into which somebody was built."""
    store = str(tmp_path / "store")
    dataset = make_dataset(tmp_path / "images", store, rows=40)
    table = embed(store, make_package(store), dataset)
    publish_index(store, build_index(store, "shop", table, IndexConfig()))
    gallery = Gallery.open(store, "shop")
    for number, name in enumerate(("Rumpelstiltskin", "Rapunzel")):
        gallery.enrol(name, images=[png(2000 + number)])
        changes = collect_changes(store, "shop", table)
        publish_index(store, build_index(store, "shop", table, IndexConfig(), changes=changes))
    gallery.close()
    return store


def traces_of(store, *traces):
    files = [path for path in Path(store).rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    return [path for path in files for trace in traces if trace in path.read_bytes()]


def test_one_who_was_enrolled_is_erased_from_log_and_all_versions_now(shop):
    vector = Searcher.open(shop, "shop").gallery.live.vectors_of(list_ids(shop, "Rumpelstiltskin"))[0]
    traces = (b"Rumpelstiltskin", png(2000), np.asarray(vector).tobytes())
    assert traces_of(shop, *traces)
    report = forget_enrolled_flow.fn("shop", None, "Rumpelstiltskin", True, shop)
    assert (report.items, report.still_held_by) == (1, [])
    assert len(report.rebuilt) == 1
    assert not traces_of(shop, *traces)
    assert all(line.erased for line in report.receipt)
    assert {"log", "index", "changes"} <= {line.place for line in report.receipt}
    assert {line.name for line in report.receipt if line.place != "log"} == set(report.removed)
    assert forgotten_ids(shop, "shop") == []
    assert list_ids(shop, "Rapunzel")
    assert published_index(shop, "shop").rows == 41


def list_ids(store, label):
    items = Gallery.open(store, "shop", readonly=True).live.items
    return items.filter(compute.equal(items["label"], label))["id"].to_pylist()


def test_without_now_the_receipt_names_the_versions_that_hold_it_until_the_next_build(shop):
    report = forget_enrolled_flow.fn("shop", None, "Rumpelstiltskin", False, shop)
    assert (report.items, report.removed) == (1, [])
    holding = [str(version.ref) for version in list_versions(shop) if version.ref.changes is not None]
    assert sorted(report.still_held_by) == sorted(holding)
    assert [(line.place, line.erased) for line in report.receipt] == [
        ("log", True),
        *[("index", False)] * len(holding),
    ]
    assert {line.until for line in report.receipt if not line.erased} == {"dml reindex, or dml forget --now"}


@pytest.mark.parametrize("by", ["identity", "id"])
def test_what_was_forgotten_before_is_erased_by_the_same_call_with_now(shop, by):
    ids = list_ids(shop, "Rumpelstiltskin") if by == "id" else None
    identity = "Rumpelstiltskin" if by == "identity" else None
    forget_enrolled_flow.fn("shop", ids, identity, False, shop)  # or killed after that
    with pytest.raises(MissingArtifact):
        forget_enrolled_flow.fn("shop", ids, identity, False, shop)
    assert traces_of(shop, b"Rumpelstiltskin")
    report = forget_enrolled_flow.fn("shop", ids, identity, True, shop)
    assert (report.items, report.still_held_by) == (1, [])
    assert not traces_of(shop, b"Rumpelstiltskin")
    assert list_ids(shop, "Rapunzel")


def test_a_call_with_now_for_nobody_says_so_and_erases_what_was_forgotten_before(shop):
    forget_enrolled_flow.fn("shop", None, "Rumpelstiltskin", False, shop)
    with pytest.raises(MissingArtifact, match="'Rapunzle' has none"):
        forget_enrolled_flow.fn("shop", None, "Rapunzle", True, shop)
    assert not traces_of(shop, b"Rumpelstiltskin")
    assert list_ids(shop, "Rapunzel")


def test_what_a_killed_build_or_removal_left_is_erased_too(shop):
    gallery = Gallery.open(shop, "shop")
    gallery.enrol("Rumpelstiltskin", images=[png(2002)])
    collect_changes(shop, "shop", gallery.ref.embeddings)  # and the build is killed
    half_removed = Path(shop, "indexes", "shop", ".staging-removed-0123456789ab-01234567")
    half_removed.mkdir()
    (half_removed / "items.parquet").write_bytes(b"Rumpelstiltskin")
    assert storage.is_removed(half_removed.name)
    forget_enrolled_flow.fn("shop", None, "Rumpelstiltskin", True, shop)
    assert not traces_of(shop, b"Rumpelstiltskin")
    assert list_ids(shop, "Rapunzel")


def test_a_build_that_is_ready_after_an_erasure_is_refused_and_leaves_nothing_of_it(people, tmp_path):
    table = published_index(people, "people").embeddings
    changes = collect_changes(people, "people", table)
    built = build_index(people, "people", table, IndexConfig(), changes=changes)
    shutil.move(built.uri, tmp_path / "not ready")
    forget_enrolled_flow.fn("people", None, "Rumpelstiltskin", True, people)
    shutil.move(tmp_path / "not ready", built.uri)
    with pytest.raises(IncompatibleArtifact, match="were erased while it was built"):
        publish_index(people, built)
    assert not traces_of(people, b"Rumpelstiltskin")


def test_a_build_whose_changes_were_erased_is_refused_and_one_that_is_there_stops_no_erasure(people):
    with closing(Gallery.open(people, "people")) as gallery:
        gallery.enrol("Rapunzel", vectors=vectors_of(1, 78), ids=["stays"])
        table = gallery.ref.embeddings
    built = build_index(
        people, "people", table, IndexConfig(), changes=collect_changes(people, "people", table)
    )
    storage.remove(built.changes.uri)  # by an erasure that began before the build was ready
    report = forget_enrolled_flow.fn("people", None, "Rumpelstiltskin", True, people)
    assert built.uri in report.removed
    assert not traces_of(people, b"Rumpelstiltskin")
    built = build_index(
        people, "people", table, IndexConfig(), changes=collect_changes(people, "people", table)
    )
    storage.remove(built.changes.uri)
    with pytest.raises(IncompatibleArtifact, match="were erased while it was built"):
        publish_index(people, built)
    assert not storage.exists(built.uri)


def test_an_erasure_waits_for_another_one_of_the_same_gallery(people):
    arguments = ("people", None, "Rumpelstiltskin", True, people)
    with ThreadPoolExecutor(1) as pool:
        with storage.folder_lock(storage.named_folder(people, "galleries", "people")):
            erasure = pool.submit(forget_enrolled_flow.fn, *arguments)
            deadline = time.monotonic() + 60
            while "gone" not in forgotten_ids(people, "people"):
                assert time.monotonic() < deadline, "nothing is forgotten"
                time.sleep(0.05)
            with pytest.raises(TimeoutError):
                erasure.result(timeout=1)
        assert erasure.result().items == 1
    assert not traces_of(people, b"Rumpelstiltskin")


def test_one_who_was_erased_and_is_enrolled_again_is_built_in(people):
    forget_enrolled_flow.fn("people", None, "Rumpelstiltskin", True, people)
    with closing(Gallery.open(people, "people")) as gallery:
        gallery.enrol("Rumpelstiltskin", vectors=vectors_of(1, 77), ids=["gone"])
        table = gallery.ref.embeddings
        changes = collect_changes(people, "people", table)
        publish_index(people, build_index(people, "people", table, IndexConfig(), changes=changes))
        gallery.refresh()
        assert gallery.item("gone").label == "Rumpelstiltskin"
        assert gallery.size.delta == 0


@pytest.fixture
def people(tmp_path):
    """A store with imported vectors in two versions, an index of each, and somebody who was enrolled."""
    store = str(tmp_path / "store")
    publish(store, tmp_path / "former", "people", items_of(ROWS + 2), vectors_of(ROWS + 2, 1))
    publish(store, tmp_path / "now", "people", items_of(ROWS), vectors_of(ROWS, 1) @ swapped())
    with closing(Gallery.open(store, "people")) as gallery:
        gallery.enrol("Rumpelstiltskin", vectors=vectors_of(1, 77), ids=["gone"])
        gallery.update("photo 3", label="Frau Holle")
    return store


def swapped():
    """A matrix that makes other vectors of the same length, whose products are as exact."""
    return np.eye(8, dtype=np.float32)[::-1].copy()


def vectors_as_stored(store, id_):
    rows = read_rows(find_vectors(store, "people").items, columns=["id"])["id"].to_pylist()
    return read_embeddings(find_vectors(store, "people")).vectors[rows.index(id_)].tobytes()


def test_an_item_of_imported_vectors_is_erased_from_all_their_versions_now(people):
    traces = (b"Frau Holle", b"Rumpelstiltskin", vectors_as_stored(people, "photo 3"))
    others = {id_: vectors_as_stored(people, id_) for id_ in ("photo 2", "photo 4", f"photo {ROWS - 1}")}
    assert {version.ref.rows for version in list_vectors(people)} == {ROWS, ROWS + 2}
    report = forget_enrolled_flow.fn("people", ["gone", "photo 3"], None, True, people)
    assert report.still_held_by == []
    assert all(line.erased for line in report.receipt)
    assert [line.place for line in report.receipt].count("vectors") == 2
    assert {version.ref.rows for version in list_vectors(people)} == {ROWS - 1, ROWS + 1}
    assert find_vectors(people, "people").rows == ROWS - 1
    assert vectors_containing(people, "people", ["photo 3"]) == []
    assert {id_: vectors_as_stored(people, id_) for id_ in others} == others
    assert forgotten_ids(people, "people") == []
    index = published_index(people, "people")
    assert (index.rows, index.embeddings.uri) == (ROWS - 1, find_vectors(people, "people").uri)
    assert not traces_of(people, *traces)
    assert all(not each.damaged for each in check_store(people))
    with closing(Gallery.open(people, "people")) as gallery:
        assert gallery.live.num_rows == ROWS - 1
        assert not gallery.holds("photo 3")
        for item in items_of(ROWS):
            if item["id"] != "photo 3":
                kept = gallery.item(item["id"])
                assert {"id": kept.id, "label": kept.label, **kept.attributes} == item


def test_a_forgotten_item_of_imported_vectors_does_not_come_back_with_their_file(people, tmp_path):
    forget_flow.fn("people", ["photo 3"], people)
    file = tmp_path / "now"
    again = import_vectors(
        people,
        "people",
        file / "vectors.npy",
        ids=file / "items.parquet",
        attributes=file / "items.parquet",
        embedder="given",
    )
    assert again.embeddings.rows == ROWS - 1
    assert "1 forgotten items are left out" in again.notes
    publish_index(people, build_index(people, "people", again.embeddings, IndexConfig()))
    with closing(Gallery.open(people, "people")) as gallery:
        assert not gallery.holds("photo 3")
        assert gallery.holds("photo 4")


def test_the_next_build_erases_what_was_forgotten_of_imported_vectors(people):
    report = forget_enrolled_flow.fn("people", ["photo 3"], None, False, people)
    held = [line for line in report.receipt if not line.erased]
    assert {line.place for line in held} == {"index", "vectors"}
    assert {line.until for line in held} == {"dml reindex, or dml forget --now"}
    erase_forgotten(people, "people")
    assert vectors_containing(people, "people", ["photo 3"]) == []
    assert forgotten_ids(people, "people") == []


def test_an_item_of_the_dataset_is_erased_there_and_its_change_in_the_log_too(shop):
    gallery = Gallery.open(shop, "shop")
    gallery.update("00003.png", label="Frau Holle")
    gallery.update("00004.png", label="Daumesdick")
    report = forget_enrolled_flow.fn("shop", ["00003.png"], None, True, shop)
    assert report.still_held_by == []
    forget_flow.fn("shelves", ["00004.png"], shop)
    assert not traces_of(shop, png(3), png(4), b"Frau Holle", b"Daumesdick", b"00003.png")
    gallery.refresh()
    assert gallery.live.num_rows == 40
    assert list_ids(shop, "Rapunzel")


def test_a_process_that_still_has_a_version_without_the_erasure_does_not_find_it(shop):
    first = min(list_versions(shop), key=lambda version: version.ref.covers_revision).ref
    old = Searcher.open(shop, str(first))
    gone = "00003.png"
    forget_enrolled_flow.fn("shop", [gone], None, True, shop)
    old.gallery.rebuild()
    assert gone not in [answer.id for answer in old.search([png(3)], k=5)[0].answers]

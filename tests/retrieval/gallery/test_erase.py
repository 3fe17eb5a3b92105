"""What is forgotten is erased from every version of index and dataset, and comes back by none."""

from pathlib import Path

import numpy as np
import pytest
from pyarrow import compute

from dml import storage
from dml.config import IndexConfig
from dml.embedding.embed import embed
from dml.retrieval.build import build_index
from dml.retrieval.gallery import Gallery, collect_changes, forgotten_ids, publish_index
from dml.retrieval.index import list_versions, published_index
from dml.serving.searcher import Searcher
from flows.forget import forget_enrolled_flow, forget_flow
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


def test_imported_vectors_hold_an_item_until_they_are_imported_without_it_and_nothing_else_does(tmp_path):
    store = str(tmp_path / "store")
    publish(store, tmp_path, "people", items_of(ROWS), vectors_of(ROWS, 1))
    gallery = Gallery.open(store, "people")
    gallery.enrol("Rumpelstiltskin", vectors=vectors_of(1, 77), ids=["gone"])
    report = forget_enrolled_flow.fn("people", ["gone", "photo 3"], None, True, store)
    held = [line for line in report.receipt if not line.erased]
    index = published_index(store, "people")  # which names what it leaves out
    assert [(line.place, line.name) for line in held] == [("index", str(index)), ("vectors", "people")]
    assert all(line.until.startswith("dml import without it") for line in held)
    assert forgotten_ids(store, "people") == ["photo 3"]


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

"""What is forgotten is erased from every version of index and dataset, and comes back by none."""

from pathlib import Path

import numpy as np
import pytest
from pyarrow import compute

from dml.config import IndexConfig
from dml.embedding.embed import embed
from dml.retrieval.build import build_index
from dml.retrieval.gallery import Gallery, collect_changes, forgotten_ids, publish_index
from dml.retrieval.index import list_versions, published_index
from dml.serving.searcher import Searcher
from flows.forget import forget_enrolled_flow, forget_flow
from tests.embedding.parts import make_dataset, make_package, png


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

"""`dml indexes`: which version answers, since when, of what, and what is newer."""

from datetime import datetime

import pytest

from dml.config import GateConfig, IndexConfig
from dml.embedding.embed import embed
from dml.registry.catalog import find_champion
from dml.registry.champion import apply_gate
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index
from tests.embedding.parts import ROWS, make_dataset, make_package
from tests.registry.parts import new_version


def test_versions_are_listed_with_dates_and_what_is_newer(dml, tmp_path):
    store = str(tmp_path / "store")
    dataset = make_dataset(tmp_path / "images", store)
    table = embed(store, make_package(store), dataset)
    built = [build_index(store, "shelves", table, IndexConfig(factory=kind)) for kind in ("Flat", "HNSW8")]
    publish_index(store, built[1])

    listed = dml("indexes", "--store", store, "--json").json["indexes"]
    assert [(ref["fingerprint"], ref["current"], ref["newer"]) for ref in listed] == [
        (built[0].fingerprint, False, []),
        (built[1].fingerprint, True, []),
    ]
    created = [datetime.fromisoformat(ref["created"]) for ref in listed]
    assert created == sorted(created)

    grown = make_dataset(tmp_path / "images", store, rows=ROWS + 7)
    done = dml("indexes", "--store", store)
    lines = [line for line in done.out.splitlines() if "shelves@" in line]
    assert [f"shelves@{grown.version}" in line for line in lines] == [False, True]
    assert ["*" in line for line in lines] == [False, True]
    assert listed[1]["created"][:10] in lines[1]


def test_what_is_there_already_is_said_and_not_made_again(tmp_path, caplog):
    caplog.set_level("INFO", logger="dml")
    store = str(tmp_path / "store")
    dataset, package = make_dataset(tmp_path / "images", store, rows=20), make_package(store)
    for _ in range(2):
        build_index(store, "shelves", embed(store, package, dataset), IndexConfig())
    said = [record.message for record in caplog.records if "nothing to do" in record.message]
    assert [line.split(":")[0] for line in said] == ["embed", "index"]


@pytest.mark.slow
def test_a_newer_champion_is_named_beside_an_index_of_a_former_one(dml, tmp_path):
    store = str(tmp_path / "store")
    dataset = make_dataset(tmp_path / "images", store, rows=20)
    for seed, recall in ((1, 0.5), (2, 0.6)):
        version = new_version(store, "shelves", seed, recall)
        former = find_champion(store, "shelves")
        apply_gate(store, version, GateConfig(), former and former.metrics)
        if former is None:
            table = embed(store, version.package, dataset)
            publish_index(store, build_index(store, "shelves", table, IndexConfig(), model=str(version)))
    (listed,) = dml("indexes", "--store", store, "--json").json["indexes"]
    assert (listed["model"], listed["newer"]) == ("shelves/1", ["shelves/2"])


def test_an_index_takes_one_of_a_model_and_an_embedder(dml, store):
    both = dml("index", "labels", "--model", "labels", "--embedder", "timm:resnet18", "--store", store)
    assert both.status == 2
    assert "Leave one out" in both.err


@pytest.mark.parametrize("option", ["--weights", "--preprocessing", "--license"])
def test_what_belongs_to_an_embedder_is_not_ignored_without_one(dml, store, option):
    alone = dml("index", "labels", option, "x", "--store", store)
    assert alone.status == 2
    assert f"{option} belongs to an --embedder" in alone.err


def test_what_searches_of_an_index_find_is_explained_and_drawn(dml, tmp_path):
    store = str(tmp_path / "store")
    dataset, package = make_dataset(tmp_path / "images", store), make_package(store)
    table = embed(store, package, dataset)
    publish_index(store, build_index(store, "shelves", table, IndexConfig(factory="IVF4,Flat")))
    picture = tmp_path / "curve.png"
    done = dml("indexes", "shelves", "--picture", str(picture), "--store", store)
    assert done.status == 0, done.err
    assert "nprobe=" in done.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    explained = dml("indexes", "shelves", "--store", store, "--json").json
    assert explained["curve"]["chosen"] in explained["curve"]["points"]


def test_a_picture_of_a_list_is_refused(dml, tmp_path):
    done = dml("indexes", "--picture", str(tmp_path / "x.png"), "--store", str(tmp_path))
    assert done.status == 2
    assert "dml indexes NAME" in done.err

"""An open searcher answers what its index holds, many images at once, and takes a new version when told."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dml.config import IndexConfig
from dml.embedding.embed import embed
from dml.errors import InvalidData, InvalidSetting, MissingArtifact
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index
from dml.serving.searcher import Searcher
from tests.embedding.parts import make_dataset, make_package, png


def publish(store, dataset, package, factory="Flat"):
    table = embed(store, package, dataset)
    ref = build_index(store, "shelves", table, IndexConfig(factory=factory))
    publish_index(store, ref)
    return ref


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searcher")
    return make_dataset(folder / "images", str(folder / "store"), rows=40)


@pytest.fixture
def store(dataset):
    store = str(Path(dataset.uri).parents[2])
    publish(store, dataset, make_package(store, seed=1))
    return store


def test_each_image_of_a_batch_finds_itself_in_its_place(store):
    searcher = Searcher.open(store, "shelves")
    results = searcher.search([png(3), png(17), png(5)], k=2)
    assert [each.answers[0].id for each in results] == ["00003.png", "00017.png", "00005.png"]
    assert [len(each.answers) for each in results] == [2, 2, 2]
    assert [each.index for each in results] == [searcher.index] * 3
    assert searcher.search([]) == []


def test_a_search_refuses_arguments_of_another_kind_with_what_to_pass(store, tmp_path):
    searcher = Searcher.open(Path(store), "shelves")
    (tmp_path / "query.png").write_bytes(png(3))
    for images in (
        png(3),
        [tmp_path / "query.png"],
        str(tmp_path),
        [None],
        iter([png(3)]),
        np.zeros((2, 8, 8, 3)),
    ):
        with pytest.raises(ValueError, match=r"images must be .*; got .*\. Pass"):
            searcher.search(images)
    for k in (0, 1.5, "3", None, True):
        with pytest.raises(InvalidSetting, match="k must be a whole number"):
            searcher.search([png(3)], k=k)
    for where in (5, [5], b"sold", "sold=yes"):
        with pytest.raises(InvalidSetting, match="A filter must"):
            searcher.search([png(3)], where=where)
    assert len(searcher.search([png(3)], k=np.int64(2))[0].answers) == 2


def test_a_batch_is_answered_as_its_images_one_by_one(store):
    searcher = Searcher.open(store, "shelves")
    images = [png(seed) for seed in range(100, 106)]
    alone = [searcher.search([image], k=5, where="sold")[0].report() for image in images]
    together = [result.report() for result in searcher.search(images, k=5, where="sold")]
    assert [[item.id for item in report.answers] for report in together] == [
        [item.id for item in report.answers] for report in alone
    ]


def test_without_a_name_it_is_the_only_index(store, tmp_path):
    assert Searcher.open(store).index.name == "shelves"
    with pytest.raises(MissingArtifact, match="dml index"):
        Searcher.open(str(tmp_path))
    with pytest.raises(MissingArtifact, match="mean 'shelves'"):
        Searcher.open(store, "shelve")


def test_it_stays_on_its_version_until_it_is_refreshed(store, dataset):
    searcher = Searcher.open(store)
    former, package = searcher.index, searcher.package
    assert not searcher.refresh()
    newer = publish(store, dataset, make_package(store, seed=1), factory="HNSW8")
    assert searcher.search([png(3)])[0].index == former
    assert searcher.refresh()
    assert searcher.search([png(3)])[0].index == searcher.index == newer
    assert searcher.package is package, "the same package is not loaded again"
    other = publish(store, dataset, make_package(store, seed=2))
    assert searcher.refresh()
    assert searcher.index == other
    assert searcher.search([png(3)])[0].answers[0].id == "00003.png"
    pinned = Searcher.open(store, f"shelves@{former.version}")
    assert pinned.index == former
    assert not pinned.refresh()


def test_threads_share_one_and_are_answered_while_it_is_refreshed(store, dataset):
    searcher = Searcher.open(store)
    publish(store, dataset, make_package(store, seed=2))
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(searcher.search, [png(seed)], k=1) for seed in range(20)]
        pool.submit(searcher.refresh).result()
        nearest = [each.result()[0].answers[0].id for each in answers]
    assert nearest == [f"{seed:05d}.png" for seed in range(20)]


def test_what_cannot_be_searched_is_refused(store):
    searcher = Searcher.open(store)
    with pytest.raises(InvalidData, match="image"):
        searcher.search([png(1), b"no image"])
    with pytest.raises(InvalidSetting, match="k must"):
        searcher.search([png(1)], k=0)

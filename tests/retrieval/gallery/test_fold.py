"""The log is built into the next version: nothing is lost, twice or back, whatever happens meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from time import monotonic

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dml.config import IndexConfig
from dml.embedding.embed import embed
from dml.embedding.table import cut_table
from dml.errors import IncompatibleArtifact, InvalidSetting
from dml.lineage import list_artifacts, remove, unneeded
from dml.retrieval import index as versions
from dml.retrieval.build import build_index
from dml.retrieval.changes import require_unchanged
from dml.retrieval.gallery import Gallery, collect_changes, publish_index, rollback_index
from dml.retrieval.shards import LocalShards, Shard, ShardedIndex, open_index
from dml.serving.searcher import Searcher
from tests.embedding.parts import make_dataset, make_package, png
from tests.retrieval.gallery.people import ROWS, items_of, publish, vectors_of
from tests.retrieval.gallery.test_live import QUERIES, WHERE, Plain, changes, follow, restarted, search


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A store, and its index of which nothing is changed yet."""
    folder = tmp_path_factory.mktemp("fold")
    return str(folder / "store"), publish(
        str(folder / "store"), folder, "people", items_of(ROWS), vectors_of(ROWS, 1)
    )


def begin(first):
    """The gallery of the first version without a log, and its items in plain Python."""
    store, ref = first
    versions.publish_index(store, ref)
    return store, ref, restarted(store, "people", open_index), Plain()


def fold(store, ref, **config):
    """The next version, as `dml reindex` builds it."""
    folded = collect_changes(store, ref.name, ref.embeddings)
    built = build_index(store, ref.name, ref.embeddings, IndexConfig(**config), changes=folded)
    publish_index(store, built)
    return built


def same(index, plain, where=None):
    """Whether an index has the items of the plain ones, and finds them alike."""
    assert sorted(index.items["id"].to_pylist()) == sorted(plain.items)
    found = search(index, QUERIES, 500, where=where, refuse_absent=False).answers
    for query, answers in zip(QUERIES, found, strict=True):
        got = sorted((answer.id, answer.similarity) for answer in answers)
        assert got == sorted(plain.search(query, 500, where))
        for answer in answers:
            item = plain.items[answer.id]
            assert answer.label == item["label"]
            assert answer.attributes == {key: item[key] for key in ("floor", "region", "seen")}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=changes, between=changes, after=changes, where=st.sampled_from(WHERE))
def test_nothing_is_lost_twice_or_back_when_the_log_is_built_in(first, before, between, after, where):
    store, ref, gallery, plain = begin(first)
    for change in before:
        follow(gallery, plain, change)
    folded = collect_changes(store, "people", ref.embeddings)
    for change in between:  # while it is built
        follow(gallery, plain, change)
    built = build_index(store, "people", ref.embeddings, IndexConfig(), changes=folded)
    publish_index(store, built)
    for change in after:
        follow(gallery, plain, change)
    gallery.refresh()
    for opened in (gallery, Gallery.open(store, "people", readonly=True)):
        assert opened.ref.version == built.version
        same(opened.live, plain, where)
        opened.close()
    again = fold(store, ref)
    same(open_index(again), plain, where)


def enrolled_and_forgotten(gallery, plain):
    for number in range(4):
        follow(gallery, plain, ("enrol", number % 3, number))
        follow(gallery, plain, ("forget", 17 * number, None))
        follow(gallery, plain, ("update", 5 * number, "north"))


def test_a_rollback_goes_on_with_all_that_happened_since(first):
    store, ref, gallery, plain = begin(first)
    enrolled_and_forgotten(gallery, plain)
    built = fold(store, ref)
    assert (built.covers_revision, built.rows) == (12, len(plain.items))
    with pytest.raises(IncompatibleArtifact, match="needs an index of an embeddings table alone"):
        require_unchanged(built, "Another engine")
    enrolled_and_forgotten(gallery, plain)
    assert rollback_index(store, "people").version == ref.version
    gallery.refresh()
    assert gallery.ref.version == ref.version
    same(gallery.live, plain)
    follow(gallery, plain, ("enrol", 1, 99))
    same(gallery.live, plain)
    gallery.close()


def test_building_again_without_changes_gives_the_same_version(first):
    store, ref, gallery, plain = begin(first)
    enrolled_and_forgotten(gallery, plain)
    assert fold(store, ref).version == fold(store, ref).version
    gallery.close()


def test_shards_take_the_changes_of_their_own_items_and_the_last_one_what_was_enrolled(first):
    store, ref, gallery, plain = begin(first)
    enrolled_and_forgotten(gallery, plain)
    folded = collect_changes(store, "people", ref.embeddings)
    parts = cut_table(ref.embeddings, 3)
    built = [build_index(store, "people", part, IndexConfig(), changes=folded) for part in parts]
    whole = build_index(store, "people", ref.embeddings, IndexConfig(), changes=folded)
    same(ShardedIndex(whole, LocalShards([Shard(part) for part in built])), plain)
    gallery.close()


def test_what_was_built_in_is_an_artefact_that_stays_as_long_as_its_index(first):
    store, ref, gallery, plain = begin(first)
    enrolled_and_forgotten(gallery, plain)
    built = fold(store, ref)
    kept = {a.uri for a in list_artifacts(store) if a.kind == "changes"}
    assert built.changes.uri in kept
    versions.rollback_index(store, f"people@{ref.version}")
    removals = unneeded(store, [], keep=1, grace=timedelta(0))
    assert {r.uri for r in remove(removals)} >= {built.uri}
    gallery.close()


def test_an_index_of_forgotten_items_alone_is_refused(tmp_path):
    ref = publish(str(tmp_path / "store"), tmp_path, "people", items_of(2), vectors_of(2, 1))
    gallery = Gallery.open(str(tmp_path / "store"), "people")
    gallery.forget(["photo 0", "photo 1"])
    assert search(gallery.live, QUERIES, 5).answers == [[], [], []]
    with pytest.raises(InvalidSetting, match=r"all 2 of people@.* were forgotten"):
        fold(str(tmp_path / "store"), ref)


# A new model


@pytest.fixture
def two_models(tmp_path):
    """A store with an index of images by one model, and the same images' table by another."""
    store = str(tmp_path / "store")
    dataset = make_dataset(tmp_path / "images", store, rows=40)
    table = embed(store, make_package(store, seed=1), dataset)
    publish_index(store, build_index(store, "shop", table, IndexConfig()))
    return store, embed(store, make_package(store, seed=2, dim=8), dataset)


def switch(store, table):
    folded = collect_changes(store, "shop", table)
    built = build_index(store, "shop", table, IndexConfig(), changes=folded)
    publish_index(store, built)
    return built


def test_index_delta_and_model_switch_together_under_load_and_back(two_models):
    store, table = two_models
    writer, searcher = Searcher.open(store, "shop"), Searcher.open(store, "shop")
    first_version, known, stop, seen = writer.index.version, [], threading.Event(), set()

    def enrol():
        number = 1000
        while not stop.is_set():
            image = png(number)
            known.append((writer.gallery.enrol(f"new {number}", images=[image]).ids[0], image, monotonic()))
            number += 1

    def ask():
        rng = np.random.default_rng()
        while not stop.is_set():
            visible = [each for each in known if each[2] < monotonic() - 0.5]
            id_, image, _ = visible[rng.integers(len(visible))]
            (found,) = searcher.search([image], k=1)
            assert (found.answers[0].id, round(found.answers[0].similarity, 4)) == (id_, 1)
            seen.add(found.index.version)
            if rng.integers(10) == 0:
                searcher.refresh()

    known.append((writer.gallery.enrol("first", images=[png(999)]).ids[0], png(999), monotonic() - 1))
    searcher.refresh()
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(each) for each in (enrol, ask, ask)]
        try:
            built = switch(store, table)
            writer.refresh()
            searcher.refresh()
            assert searcher.search([png(3)], k=1)[0].index.version == built.version
            rollback_index(store, "shop")
            writer.refresh()
            searcher.refresh()
        finally:
            stop.set()
        for each in running:
            each.result(30)
    assert len(known) > 3
    for version in (first_version, built.version):
        pinned = Searcher.open(store, f"shop@{version}")
        for id_, image, _ in known[::5] if version == first_version else known[:1]:
            assert pinned.search([image], k=1)[0].answers[0].id == id_
    assert seen <= {first_version, built.version}


def test_a_reader_that_did_not_refresh_finds_what_was_enrolled_by_the_new_model(two_models):
    store, table = two_models
    writer, reader = Searcher.open(store, "shop"), Searcher.open(store, "shop")
    writer.gallery.enrol("one", images=[png(1000)])
    built = switch(store, table)
    done = writer.gallery.enrol("two", images=[png(1001)])
    assert writer.index.version == built.version
    reader.gallery.refresh()
    assert reader.search([png(1001)], k=1)[0].answers[0].id == done.ids[0]


def test_vectors_without_images_keep_their_model_and_say_so(two_models):
    store, table = two_models
    gallery = Gallery.open(store, "shop")
    vector = gallery.live.vectors_of(["00003.png"])
    gallery.enrol("vector", vectors=vector, ids=["v"])
    with pytest.raises(IncompatibleArtifact, match="1 items, such as 'v', are vectors of another model"):
        switch(store, table)
    assert gallery.refresh() is False
    gallery.forget("v")
    assert switch(store, table).rows == 40

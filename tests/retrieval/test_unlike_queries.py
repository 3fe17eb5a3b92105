"""Recall is measured on items, so it is promised for queries like them; the plan says which are not."""

import json

import faiss
import numpy as np
import pytest

from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.embedding.imported import find_vectors
from dml.retrieval.build import build_index
from dml.retrieval.bundle import read_calibration
from dml.retrieval.bundle_index import BundleIndex
from dml.retrieval.shards import LocalShards, Shard, ShardedIndex
from tests.embedding.parts import unit_vectors

ROWS, QUERIES, DIM = 3000, 1000, 64
UNLIKE = "unlike the items"


def of_an_embedding(rows):
    """Most of the variance is in a few directions, as of an embedding; random directions are others."""
    drawn = np.random.default_rng(7).standard_normal((rows, DIM)) * np.arange(1, DIM + 1) ** -1.0
    vectors = drawn.astype(np.float32)
    faiss.normalize_L2(vectors)
    return vectors


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    store = tmp_path_factory.mktemp("unlike")
    np.save(store / "vectors.npy", of_an_embedding(ROWS + QUERIES)[:ROWS])
    import_vectors(str(store), "vectors", store / "vectors.npy")
    return str(store), find_vectors(str(store), "vectors")


@pytest.fixture(scope="module")
def like():
    """Of the same distribution, and in no index."""
    return of_an_embedding(ROWS + QUERIES)[ROWS:]


@pytest.fixture(
    scope="module",
    params=[{"factory": "HNSW16"}, {"factory": "IVF32,SQ8"}, {"factory": "Flat", "first_stage": "pca32"}],
    ids=["graph", "codes", "cascade"],
)
def index(request, table):
    store, vectors = table
    return BundleIndex(build_index(store, "vectors", vectors, IndexConfig(recall=0.9, **request.param)))


def plan_of(index, queries, **options):
    return index.search(queries, 10, embedder=index.ref.embeddings.embedder.fingerprint, **options).plan


def test_the_plan_says_which_queries_are_unlike_the_items(index, like):
    random = unit_vectors(100, DIM, 3)
    noted = [UNLIKE in str(plan_of(index, query[None])) for query in like]
    assert np.mean(noted) <= 0.01
    assert all(UNLIKE in str(plan_of(index, query[None])) for query in random[:20])
    assert str(plan_of(index, random[:1])).endswith(
        "this query is unlike the items; the recall is not promised"
    )
    both = plan_of(index, np.concatenate([like[:50], random]))
    assert f"100 of 150 queries are {UNLIKE}; their recall is not promised" in str(both)


def test_an_exact_answer_is_promised_to_every_query(index, table):
    store, vectors = table
    exact = BundleIndex(build_index(store, "exact", vectors, IndexConfig(factory="Flat")))
    assert UNLIKE not in str(plan_of(exact, unit_vectors(1, DIM, 3)))
    filtered = plan_of(index, unit_vectors(1, DIM, 3), where="position < 50")
    assert filtered.recall.basis == "exact"
    assert UNLIKE not in str(filtered)


def test_what_was_compared_with_all_is_exact_however_unlike_the_query_is(index):
    random = unit_vectors(4, DIM, 3)
    for queries in (random, random[:1]):
        plan = index.search(queries, ROWS, embedder=index.ref.embeddings.embedder.fingerprint).plan
        assert UNLIKE not in str(plan)


def test_recall_is_said_to_be_that_of_queries_like_the_items(index, like):
    said = dict(plan_of(index, like[:1]).explained())
    assert "measured at build on 600 queries like the items" in said["recall"]
    recall = json.loads(plan_of(index, like[:1]).model_dump_json())["recall"]
    assert recall["least_similarity"] == read_calibration(index.ref).operating_curve.least_similarity


def test_a_query_like_the_items_of_one_shard_is_like_those_of_the_index(table, like):
    store, vectors = table
    whole = BundleIndex(build_index(store, "whole", vectors, IndexConfig(factory="HNSW16", recall=0.9)))
    one = whole.ref.model_copy(update={"shards": ()})
    sharded = ShardedIndex(one, LocalShards([Shard(one), Shard(one, first_row=ROWS)]))
    assert UNLIKE not in str(plan_of(sharded, like[:5]))
    assert "5 of 5 queries are unlike" in str(plan_of(sharded, unit_vectors(5, DIM, 3)))


def test_too_few_rows_promise_no_least_similarity(table, tmp_path):
    np.save(tmp_path / "few.npy", of_an_embedding(300))
    import_vectors(str(tmp_path / "store"), "few", tmp_path / "few.npy")
    ref = build_index(
        str(tmp_path / "store"),
        "few",
        find_vectors(str(tmp_path / "store"), "few"),
        IndexConfig(factory="HNSW8"),
    )
    assert read_calibration(ref).operating_curve.least_similarity is None
    assert UNLIKE not in str(plan_of(BundleIndex(ref), unit_vectors(1, DIM, 3)))

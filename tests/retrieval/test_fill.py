"""Filling an index in blocks: the same bytes as Faiss' own `add`, and never all vectors at once."""

import faiss
import numpy as np
import pytest

from dml.retrieval.fill import add, add_to_graph, fill, train, training_rows
from dml.retrieval.vectors import FlatVectors
from tests.embedding.parts import unit_vectors
from tests.retrieval.test_vectors import written

ROWS, DIM, BLOCK = 900, 16, 200


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    path = tmp_path_factory.mktemp("fill") / "vectors.faiss"
    written(path, unit_vectors(ROWS, DIM, seed=1))
    return FlatVectors(str(path), block_bytes=BLOCK * DIM * 4)


@pytest.mark.parametrize(
    "factory",
    [
        "Flat",
        "IVF8,Flat",
        "IVF8,SQ8",
        "IVF8,SQfp16",
        "IVF8,PQ4x4",
        "IVF8,RaBitQ",
        "IVF8,PQ4x4fs",
        "IVF8,PQ4x4fs,RFlat",
        "PCA8,IVF8,Flat",
        "IVF8_HNSW8,Flat",
        "HNSW8",
        "HNSW8,SQ8",
        "SQ8",
        "PQ4x4",
        "RaBitQ",
    ],
)
def test_an_index_filled_in_blocks_is_the_one_that_faiss_fills(vectors, factory):
    ours, theirs = (faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT) for _ in range(2))
    fill(ours, vectors)
    theirs.train(training_rows(theirs, vectors))
    for block in vectors.blocks():
        theirs.add(block)
    assert ours.ntotal == ROWS
    assert faiss.serialize_index(ours).tobytes() == faiss.serialize_index(theirs).tobytes()


@pytest.mark.parametrize(
    "late", [[0], [ROWS - 1], [0, 3, 4, 500, ROWS - 1], list(range(7, ROWS, 3))], ids=len
)
@pytest.mark.parametrize("factory", ["HNSW4", "HNSW8,SQ8"])
def test_rows_that_a_graph_is_given_late_are_numbered_as_by_permute_entries_of_faiss(vectors, factory, late):
    rows = np.array(late)
    ours, theirs = (faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT) for _ in range(2))
    for index in (ours, theirs):
        train(index, vectors)
        add(index, vectors, without=rows)
    add_to_graph(ours, vectors, rows)
    theirs.add(vectors.take(rows))
    former = np.empty(ROWS, dtype=np.int64)
    former[np.r_[np.delete(np.arange(ROWS), rows), rows]] = np.arange(ROWS)
    theirs.permute_entries(former)
    assert faiss.serialize_index(ours).tobytes() == faiss.serialize_index(theirs).tobytes()


def test_a_graph_that_takes_no_more_is_filled_at_once(vectors):
    index = faiss.index_factory(DIM, "NSG8", faiss.METRIC_INNER_PRODUCT)
    fill(index, vectors)
    assert index.ntotal == ROWS


@pytest.mark.parametrize(
    ("rows", "equal", "why"), [(64, 1, "65 vectors or more; 64"), (300, 150, "at most 32 equal vectors; 150")]
)
def test_vectors_of_which_faiss_makes_no_graph_are_refused(tmp_path, rows, equal, why):
    """Of 300 vectors of which 150 are equal its building never ended."""
    vectors = np.random.default_rng(0).standard_normal((rows, DIM), dtype=np.float32)
    vectors[:equal] = vectors[0]
    written(tmp_path / "vectors.faiss", vectors)
    index = faiss.index_factory(DIM, "NSG8", faiss.METRIC_INNER_PRODUCT)
    with pytest.raises(RuntimeError, match=why):
        fill(index, FlatVectors(str(tmp_path / "vectors.faiss")))


def test_an_index_is_trained_on_rows_of_the_table_in_their_order(vectors):
    index = faiss.index_factory(DIM, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    sample = training_rows(index, vectors)
    np.testing.assert_array_equal(sample, vectors.take(np.arange(ROWS)), "a small table is the sample")

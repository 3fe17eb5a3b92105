"""Flat vectors: one Faiss file written in blocks, whose answers are those of comparing in NumPy."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.retrieval.vectors import FlatVectors, nearest, write_vectors
from tests.embedding.parts import unit_vectors

ROWS, DIM = 300, 24
TOLERANCE = {"float32": 1e-6, "float16": 2e-3}


def written(path, vectors, dtype="float32", *, block=70):
    with open(path, "wb") as file:
        blocks = (vectors[start : start + block] for start in range(0, len(vectors), block))
        write_vectors(file.write, blocks, rows=len(vectors), dim=vectors.shape[1], dtype=dtype)
    return FlatVectors(str(path))


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,Flat"])
def test_a_search_without_conversions_is_the_one_of_faiss(factory):
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    rows = unit_vectors(ROWS, DIM, seed=1)
    index.train(rows)
    index.add(rows)
    for queries in (rows[:1], rows[:5]):
        for ours, theirs in zip(nearest(index, queries, 7), index.search(queries, 7), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def vectors():
    return unit_vectors(ROWS, DIM, seed=1)


@pytest.fixture(scope="module", params=["float32", "float16"])
def flat(request, tmp_path_factory, vectors):
    return written(tmp_path_factory.mktemp("flat") / "vectors.faiss", vectors, request.param)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_file_is_the_one_that_faiss_writes(tmp_path, vectors, dtype):
    written(tmp_path / "ours", vectors, dtype)
    index = faiss.index_factory(
        DIM, {"float32": "Flat", "float16": "SQfp16"}[dtype], faiss.METRIC_INNER_PRODUCT
    )
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "faiss"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "faiss").read_bytes()


def test_rows_are_taken_as_they_were_written(flat, vectors):
    rows = np.array([299, 0, 7, 7, 150])
    expected = vectors[rows] if flat.dtype == "float32" else vectors[rows].astype(np.float16)
    np.testing.assert_array_equal(flat.take(rows), expected.astype(np.float32))
    assert (flat.rows, flat.dim) == (ROWS, DIM)


def test_blocks_are_all_rows_in_order(flat):
    blocks = list(flat.blocks(block_rows=128))
    assert [len(block) for block in blocks] == [128, 128, 44]
    np.testing.assert_array_equal(np.concatenate(blocks), flat.take(np.arange(ROWS)))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, ROWS - 1), unique=True, max_size=ROWS).map(sorted),
    k=st.integers(1, 40),
    num_queries=st.integers(0, 40),
    seed=st.integers(0, 9),
)
def test_the_best_among_some_rows_are_those_of_comparing_with_each(flat, rows, k, num_queries, seed):
    numbers, queries = np.array(rows, dtype=np.int64), unit_vectors(num_queries, DIM, seed)
    similarities, found = flat.search_among(queries, k, numbers)
    expected = queries.astype(np.float64) @ flat.take(numbers).astype(np.float64).T
    best = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found, numbers[best])
    np.testing.assert_allclose(similarities, np.take_along_axis(expected, best, axis=1), atol=1e-6)


def test_a_similarity_does_not_depend_on_the_other_queries(flat):
    queries, rows = unit_vectors(50, DIM, seed=3), np.arange(0, ROWS, 3)
    together = flat.search_among(queries, 5, rows)
    alone = [flat.search_among(queries[i : i + 1], 5, rows) for i in range(50)]
    np.testing.assert_array_equal(together[0], np.concatenate([similarities for similarities, _ in alone]))
    np.testing.assert_array_equal(together[1], np.concatenate([rows for _, rows in alone]))


@pytest.mark.parametrize("num_queries", [1, 16, 50])
def test_rows_side_by_side_have_the_similarities_of_rows_that_are_not(tmp_path, num_queries):
    vectors, queries = unit_vectors(9_000, DIM, seed=6), unit_vectors(num_queries, DIM, seed=7)
    flat, first = written(tmp_path / "many", vectors, block=4_000), 200
    together = np.arange(first, len(vectors))
    with_a_gap = np.concatenate([[0], together])
    similarities, rows = flat.search_among(queries, 400, together)
    expected, expected_rows = flat.search_among(queries, 401, with_a_gap)
    for query in range(num_queries):
        others = expected_rows[query] != 0
        np.testing.assert_array_equal(rows[query], expected_rows[query][others][:400])
        np.testing.assert_array_equal(similarities[query], expected[query][others][:400])


def test_a_subset_is_searched_again_and_again(flat):
    rows = np.arange(0, ROWS, 7)
    subset = flat.subset(rows)
    for seed in range(3):
        queries = unit_vectors(4, DIM, seed)
        for found, expected in zip(
            subset.search(queries, 6), flat.search_among(queries, 6, rows), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_the_best_of_all_rows_are_found_block_by_block(flat, vectors):
    queries = unit_vectors(30, DIM, seed=4)
    in_blocks = FlatVectors(flat.path, block_bytes=4 * DIM * 37)  # of 37 rows
    similarities, rows = in_blocks.search(queries, 9)
    np.testing.assert_array_equal(rows, flat.search_among(queries, 9, np.arange(ROWS))[1])
    np.testing.assert_allclose(
        similarities, np.sort(queries @ vectors.T)[:, ::-1][:, :9], atol=TOLERANCE[flat.dtype]
    )
    assert flat.search(queries, ROWS + 5)[0].shape == (30, ROWS)


def test_equal_similarities_rank_by_row(tmp_path):
    flat = written(tmp_path / "twins", np.repeat(unit_vectors(5, DIM, seed=5), 4, axis=0))
    similarities, rows = flat.search_among(flat.take(np.array([9])), 20, np.arange(20))
    assert rows[0, :4].tolist() == [8, 9, 10, 11]
    assert (np.diff(similarities[0]) <= 0).all()


@pytest.mark.parametrize("rows", [[-1, 3], [0, ROWS]])
def test_rows_that_are_not_there_are_refused(flat, vectors, rows):
    for read in (flat.take, lambda rows: flat.search_among(vectors[:1], 1, rows)):
        with pytest.raises(ValueError, match=r"rows must be in \[0, 300\)"):
            read(np.array(rows))


def test_other_than_the_announced_number_of_rows_is_refused(tmp_path, vectors):
    with open(tmp_path / "short", "wb") as file, pytest.raises(ValueError, match="301 rows in all; got 300"):
        write_vectors(file.write, iter([vectors]), rows=ROWS + 1, dim=DIM)


def test_the_file_of_another_index_is_refused(tmp_path, vectors):
    index = faiss.index_factory(DIM, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    faiss.write_index(index, str(tmp_path / "lists"))
    with pytest.raises(ValueError, match="flat Faiss index"):
        FlatVectors(str(tmp_path / "lists"))

"""Of equally similar rows the first ones are answered, whatever Faiss keeps."""

import faiss
import numpy as np
import pytest

from dml.retrieval.ties import first_of_equals


@pytest.mark.parametrize("k", [1, 3, 10, 99, 150, 200])
def test_equals_at_the_last_place_are_those_of_the_first_rows(k):
    rng = np.random.default_rng(3)
    vectors = rng.integers(-1, 2, (200, 4)).astype(np.float32)
    queries = rng.integers(-1, 2, (30, 4)).astype(np.float32)
    index = faiss.IndexFlatIP(4)
    index.add(vectors)
    similarities, rows = first_of_equals(index.search, queries, k, 200)
    plain = queries @ vectors.T
    expected = np.argsort(-plain, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(similarities, np.take_along_axis(plain, expected, axis=1))

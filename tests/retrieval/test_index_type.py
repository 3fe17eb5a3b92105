"""The bytes of an index file by formula are those of the file that Faiss writes."""

import faiss
import numpy as np
import pytest

from dml.errors import InvalidSetting
from dml.retrieval.index_type import IndexType

EXACT = ["Flat", "SQfp16", "SQ8", "IVF8,Flat", "IVF12,SQfp16", "IVF8,SQ8", "IVF8,RaBitQ", "IVF8,RaBitQ4"]
EXPECTED = ["IVF8,PQ16x4fs", "IVF24,PQ8x4fs", "IVF32_HNSW8,Flat", "HNSW32", "HNSW8", "HNSW16,SQ8"]


def built(factory, rows, dim, *, direct_map=False):
    vectors = np.random.default_rng(rows).standard_normal((rows, dim), dtype=np.float32)
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    if direct_map:
        faiss.extract_index_ivf(index).make_direct_map()
    return len(faiss.serialize_index(index))


@pytest.mark.parametrize(("rows", "dim"), [(1200, 32), (1601, 48)])
@pytest.mark.parametrize("factory", EXACT)
def test_the_bytes_of_a_file_are_exact(factory, rows, dim):
    assert IndexType.parse(factory).file_bytes(rows, dim) == built(factory, rows, dim)


@pytest.mark.parametrize("factory", EXPECTED)
def test_graphs_and_padded_lists_are_within_five_percent(factory):
    assert IndexType.parse(factory).file_bytes(1200, 32) == pytest.approx(built(factory, 1200, 32), rel=0.05)


def test_the_places_of_rows_count_where_they_are_stored():
    assert IndexType.parse("IVF8,Flat").file_bytes(1200, 32, direct_map=True) == built(
        "IVF8,Flat", 1200, 32, direct_map=True
    )


@pytest.mark.parametrize(
    ("factory", "bytes_"),
    [("Flat", 2048), ("IVF8,SQfp16", 1032), ("IVF8,SQ8", 520), ("IVF8,RaBitQ4", 284), ("IVF8,RaBitQ", 80),
     ("IVF8,PQ64x4fs", 40)],
)  # fmt: skip
def test_bytes_of_a_vector_of_512_dimensions(factory, bytes_):
    rows = 10**9
    assert IndexType.parse(factory).file_bytes(rows, 512) / rows == pytest.approx(bytes_, rel=1e-3)


@pytest.mark.parametrize(
    "factory", ["", "LSH", "IVF0,Flat", "IVF8", "RaBitQ", "PQ8x4fs", "IVF8,PQ8", "HNSW8,RaBitQ"]
)
def test_a_family_without_a_formula_is_refused(factory):
    with pytest.raises(InvalidSetting, match="predicted"):
        IndexType.parse(factory)

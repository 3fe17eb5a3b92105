"""Rows ordered by a column: the same answers from other rows, and matches of a value side by side."""

import numpy as np
import pytest

from dml.config import IndexConfig
from dml.embedding.table import read_embeddings
from dml.errors import InvalidSetting
from dml.retrieval.build import build_index
from dml.retrieval.bundle import open_bundle
from dml.retrieval.export import export_index
from dml.retrieval.filters import check
from dml.retrieval.shards import open_index
from tests.embedding.parts import unit_vectors


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return str(tmp_path_factory.mktemp("ordered"))


@pytest.fixture(scope="module", params=["Flat", "IVF4,SQ8", "HNSW8"])
def both(request, place, embeddings):
    """An index in the order of its items, and one by a column."""
    config = IndexConfig(factory=request.param)
    ordered = config.model_copy(update={"order_by": "shelf"})
    return [build_index(place, "shelves", embeddings, each) for each in (config, ordered)]


def test_rows_are_ordered_by_value_and_keep_their_vectors(both, embeddings):
    bundle = open_bundle(both[1])
    shelves = bundle.items.table["shelf"].to_pylist()
    assert shelves == sorted(shelves, key=lambda shelf: (shelf is None, shelf))
    positions = bundle.items.table["position"].to_numpy()
    assert sorted(positions) == list(range(both[1].rows))
    vectors = read_embeddings(embeddings).vectors[positions]
    np.testing.assert_array_equal(bundle.vectors.take(np.arange(both[1].rows)), vectors)


def test_rows_of_a_value_are_together_and_by_list(both):
    bundle = open_bundle(both[1])
    matches = bundle.attributes.matches(check("shelf = 'top'", bundle.attributes))
    assert (np.diff(matches.rows()) == 1).all()
    if both[1].factory == "IVF4,SQ8":
        vectors = bundle.vectors.take(matches.rows())
        lists = bundle.index.quantizer.search(vectors, 1)[1].ravel()
        assert (np.diff(lists) >= 0).all()


@pytest.mark.parametrize("where", [None, "shelf = 'top'", "year > 2000 and sold"])
def test_the_answers_are_those_of_the_other_order(both, where):
    queries = unit_vectors(6, 16, seed=11)
    answers = []
    for ref in both:
        index, embedder = open_index(ref), ref.embeddings.embedder.fingerprint
        result = index.search(queries, ref.rows, where=where, embedder=embedder)
        answers.append([{answer.id: answer for answer in of_query} for of_query in result.answers])
    for plain, ordered in zip(*answers, strict=True):
        assert plain.keys() == ordered.keys()
        for id_, answer in plain.items():
            assert ordered[id_].position == answer.position
            assert ordered[id_].attributes == answer.attributes
            assert ordered[id_].similarity == pytest.approx(answer.similarity, abs=1e-6)


def test_an_export_is_in_the_order_of_the_items(both, tmp_path):
    for number, ref in enumerate(both):
        export_index(ref, "npy", tmp_path / str(number))
    vectors = [np.load(tmp_path / name / "vectors.npy") for name in "01"]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    items = [(tmp_path / name / "items.parquet").read_bytes() for name in "01"]
    assert items[0] == items[1]


def test_a_column_that_the_items_do_not_have_is_refused(place, embeddings):
    with pytest.raises(InvalidSetting, match=r"order_by must be one of the columns.*mean 'shelf'"):
        build_index(place, "refused", embeddings, IndexConfig(order_by="shelv"))

"""Many enrolled items are found by inverted lists with the recall that is promised, and by nothing less."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.retrieval.filters import matching_rows
from dml.retrieval.gallery import Gallery
from dml.retrieval.gallery.delta import Delta
from dml.retrieval.gallery.delta_lists import DeltaLists
from dml.retrieval.recall_table import EXACT
from tests.embedding.parts import unit_vectors
from tests.retrieval.gallery.people import SCHEMA, items_of, publish

DIM, RECALL, EXACT_ROWS = 24, 0.95, 1500
NUM_QUERIES = 200
IDS = pa.schema([("id", pa.string()), ("floor", pa.int64())])


def people(rows: int, seed: int, dim: int = DIM) -> np.ndarray:
    """(N, D) unit vectors, several near each of some centres, as embeddings of identities are."""
    centres = unit_vectors(60, dim, 0)
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, len(centres), rows)] + 0.15 * rng.standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def delta_of(vectors, step=500, **options):
    options = {"recall": RECALL, "exact_rows": EXACT_ROWS, **options}
    delta = Delta(IDS, vectors.shape[1], **options)
    items = [{"id": str(row), "floor": row % 3} for row in range(len(vectors))]
    for start in range(0, len(vectors), step):
        delta = delta.with_items(items[start : start + step], vectors[start : start + step])
    return delta


def recall_of(delta, rows, k, queries):
    """Share of the k nearest that are found; what is found is of `rows`, with its true cosine."""
    (similarities, found), recall = delta.nearest(queries, k, rows)
    products = queries @ delta.vectors.T
    assert found.shape == (len(queries), min(k, len(rows)))
    assert np.isin(found, rows).all()
    assert all(len(set(of_query)) == len(of_query) for of_query in found.tolist())
    np.testing.assert_allclose(similarities, np.take_along_axis(products, found, axis=1), atol=1e-6)
    assert (np.diff(similarities, axis=1) <= 0).all()
    plain = [rows[np.argsort(-of_query[rows])[:k]].tolist() for of_query in products]
    shares = [len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), plain, strict=True)]
    return float(np.mean(shares)), recall


@pytest.mark.parametrize("k", [1, 10, 40])
@pytest.mark.parametrize("rows", [slice(None), slice(None, None, 2), slice(2000, 6000)])
def test_recall_is_that_of_the_plain_loop_or_what_is_promised_with_and_without_a_filter(grown, rows, k):
    chosen = np.arange(grown.num_rows)[rows]
    reached, promised = recall_of(grown, chosen, k, people(NUM_QUERIES, 99))
    assert promised.basis == "calibrated"
    assert promised.low >= RECALL
    assert reached >= RECALL


@pytest.fixture(scope="module")
def grown():
    return delta_of(people(6200, 1))  # the last 200 rows are not in the lists yet


def test_few_rows_or_few_matches_or_an_index_that_was_asked_for_as_flat_are_compared_exactly(grown):
    queries = people(20, 98)
    for delta, rows in (
        (delta_of(people(EXACT_ROWS, 1)), np.arange(EXACT_ROWS)),
        (grown, np.arange(0, grown.num_rows, 5)),
        (delta_of(people(3000, 1), recall=1.0), np.arange(3000)),
    ):
        assert recall_of(delta, rows, 10, queries) == (1.0, EXACT)


def test_vectors_without_clusters_are_compared_exactly_since_lists_do_not_pay():
    delta = delta_of(unit_vectors(4000, 96, 3))
    assert recall_of(delta, np.arange(4000), 10, unit_vectors(20, 96, 4)) == (1.0, EXACT)


def test_lists_compare_a_share_of_the_rows(grown):
    lists = DeltaLists.made_of(grown.vectors, recall=RECALL)
    sizes = [len(rows) for rows in lists.candidates(people(50, 97), 10, None)]
    assert np.mean(sizes) < 0.2 * grown.num_rows
    assert lists.num_bytes < 0.15 * grown.vectors.nbytes


@settings(max_examples=4, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["enrol", "enrol", "forget", "update"]), st.integers(1, 900)),
        min_size=3,
        max_size=6,
    )
)
def test_growing_over_the_threshold_forgetting_and_changing_keep_the_recall(steps):
    vectors, queries, number = people(12000, 5), people(60, 96), EXACT_ROWS
    delta = delta_of(vectors[:number])
    kept = {str(row): vectors[row] for row in range(number)}
    for kind, amount in steps:
        if kind == "enrol":
            ids = [str(row) for row in range(number, number + amount)]
            number += amount
        else:
            ids = list(kept)[:: max(len(kept) // amount, 1)]
            delta = delta.without(ids)
            kept = {id_: vector for id_, vector in kept.items() if id_ not in set(ids)}
        if kind != "forget":
            delta = delta.with_items([{"id": id_} for id_ in ids], vectors[[int(id_) for id_ in ids]])
            kept |= {id_: vectors[int(id_)] for id_ in ids}
        assert delta.table["id"].to_pylist() == list(kept)
        np.testing.assert_array_equal(delta.vectors, np.stack(list(kept.values())))
        assert recall_of(delta, np.arange(len(kept)), 10, queries)[0] >= RECALL - 0.02  # of 60 queries


def test_a_centroid_that_was_trained_on_a_forgotten_row_alone_is_forgotten_too():
    vectors = np.eye(8, dtype=np.float32)[np.repeat(np.arange(8), [1, 20, 20, 20, 20, 20, 20, 20])]
    lists = DeltaLists(np.eye(8, dtype=np.float32), vectors.argmax(axis=1).astype(np.uint16), 141, 0.2, EXACT)
    left = lists.without(np.arange(len(vectors)) != 0)
    np.testing.assert_array_equal(left.centroids, np.eye(8)[1:])
    assert [len(rows) for rows in left.candidates(vectors[:1], 1, None)] == [40]


@pytest.mark.parametrize("where", [None, "floor != 1"])
def test_a_gallery_answers_by_the_lists_of_what_was_enrolled_and_its_plan_says_so(tmp_path, where):
    store, enrolled, queries = str(tmp_path / "store"), people(1200, 7), people(40, 95)
    publish(store, tmp_path, "people", items_of(300), people(300, 6), factory="IVF4,Flat")
    gallery = Gallery.open(store, "people", exact_rows=400)
    for start in range(0, 1200, 300):
        for floor in range(3):
            rows = range(start + floor, start + 300, 3)
            gallery.enrol(
                "crowd",
                vectors=enrolled[rows],
                attributes={"floor": floor},
                ids=[f"new {row}" for row in rows],
            )
    gallery.forget([f"new {row}" for row in range(0, 600, 7)])
    gallery.update("new 1", attributes={"floor": 0})
    live = gallery.live
    found = live.search(queries, 10, embedder=live.ref.embeddings.embedder.fingerprint, where=where)
    note = "enrolled since by their nearest lists"
    assert note in str(found.plan)
    assert found.plan.recall.value < 1
    items = live.items
    matching = matching_rows(items.select(SCHEMA.names).cast(SCHEMA), where, refuse_absent=False)
    ids = [items["id"][row].as_py() for row in np.flatnonzero(matching)]
    products = queries @ live.vectors_of(ids).T
    reached = []
    for of_query, answers in zip(products, found.answers, strict=True):
        best = {ids[place] for place in np.argsort(-of_query)[:10]}
        got = {answer.id for answer in answers}
        assert len(got) == 10
        assert got <= set(ids)
        reached.append(len(got & best) / 10)
    assert np.mean(reached) >= RECALL - 0.02  # of 40 queries
    reopened = Gallery.open(store, "people", readonly=True, exact_rows=400).live
    assert note in str(reopened.search(queries, 10, embedder=live.ref.embeddings.embedder.fingerprint).plan)
    for few in ("floor = 2", "label = 'person 1'"):
        plan = live.search(queries, 5, embedder=live.ref.embeddings.embedder.fingerprint, where=few).plan
        assert note not in str(plan)
    gallery.close()

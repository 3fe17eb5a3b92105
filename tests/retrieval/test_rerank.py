"""Re-ranking: the order is that of a plain loop, similarities stay, wrong scores are refused."""

import numpy as np
import pytest

from dml.config import IndexConfig
from dml.errors import InvalidSetting
from dml.retrieval.build import build_index
from dml.retrieval.bundle_index import BundleIndex
from dml.retrieval.rerank import reranked_search
from dml.retrieval.rerankers import expanded, k_reciprocal_distances
from tests.embedding.parts import ROWS, table_of, unit_vectors

DIM = 16


def k_reciprocal_by_plain_loop(query, vectors, k1, k2, weight):
    """As Zhong et al. 2017 write it, neighbour by neighbour."""
    every = [query.astype(np.float64), *vectors.astype(np.float64)]
    number = len(every)
    distance = [[max(2 - 2 * float(a @ b), 0) for b in every] for a in every]
    distance = [[value / max(row) for value in row] for row in distance]
    ranked = [sorted(range(number), key=lambda j, i=i: (j != i, distance[i][j], j)) for i in range(number)]

    def reciprocal(i, k):
        return {j for j in ranked[i][: k + 1] if i in ranked[j][: k + 1]}

    weights = []
    for i in range(number):
        own = reciprocal(i, k1)
        members = set(own)
        for j in own:
            theirs = reciprocal(j, round(k1 / 2))
            if len(theirs & own) > 2 / 3 * len(theirs):
                members |= theirs
        total = sum(np.exp(-distance[i][j]) for j in members)
        weights.append([np.exp(-distance[i][j]) / total if j in members else 0 for j in range(number)])
    weights = [
        [sum(weights[near][j] for near in ranked[i][:k2]) / k2 for j in range(number)] for i in range(number)
    ]
    result = []
    for i in range(1, number):
        common = sum(min(weights[0][j], weights[i][j]) for j in range(number))
        result.append((1 - weight) * (1 - common / (2 - common)) + weight * distance[0][i])
    return result


@pytest.mark.parametrize(("number", "k1", "k2"), [(40, 20, 6), (40, 6, 2), (12, 20, 6), (1, 20, 1)])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_k_reciprocal_distances_are_those_of_the_plain_loop(number, k1, k2, weight):
    rng = np.random.default_rng(number + k1)
    drawn = rng.standard_normal((number + 1, 8)) + 2 * rng.standard_normal(8)
    query, *vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    found = k_reciprocal_distances(query, np.array(vectors), k1=k1, k2=k2, weight=weight)
    expected = k_reciprocal_by_plain_loop(query, np.array(vectors), k1, k2, weight)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_copies_are_before_all_others():
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((60, 8)) + 3 * rng.standard_normal(8)
    drawn[5:45] = drawn[0]  # more copies of the query than a set has neighbours
    query, *vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    found = k_reciprocal_distances(query, np.array(vectors))
    is_copy = (np.array(vectors) == query).all(axis=1)
    assert is_copy.sum() == 40
    assert found[is_copy].max() < found[~is_copy].min()


def test_a_query_is_expanded_by_its_answers_as_similar_as_they_are():
    query, near, far = np.eye(3, dtype=np.float32)[0], np.float32([0.6, 0.8, 0]), np.float32([-1, 0, 0])
    mean = query + 0.6**3 * near  # what points away does not count
    found = expanded(query, np.stack([near, far]), alpha=3)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-6)


def test_a_query_without_answers_stays_as_it_is():
    query = np.float32([0.6, 0.8])
    np.testing.assert_allclose(expanded(query, np.empty((0, 2), np.float32)), query, atol=1e-6)


@pytest.fixture(scope="module")
def vectors():
    return unit_vectors(ROWS, DIM, 0)


@pytest.fixture(scope="module")
def index(store, package, dataset, vectors):
    return BundleIndex(
        build_index(store, "reranked", table_of(store, package, dataset, vectors), IndexConfig())
    )


def search(index, query, k, by, **more):
    embedder = index.ref.embeddings.embedder.fingerprint
    return reranked_search(index, query, k, by=by, embedder=embedder, **more)


def plain(index, query, k, **more):
    return index.search(query, k, embedder=index.ref.embeddings.embedder.fingerprint, **more).answers


@pytest.mark.parametrize("by", ["query-expansion", "k-reciprocal", lambda query, pool: -pool.vectors[:, 0]])
def test_answers_are_k_with_the_cosine_of_the_query_and_the_plan_names_the_stages(index, vectors, by):
    queries = unit_vectors(3, DIM, 1)
    result = search(index, queries, 5, by)
    for query, answers in zip(queries, result.answers, strict=True):
        assert len({answer.id for answer in answers}) == 5
        for answer in answers:
            assert answer.similarity == pytest.approx(float(vectors[answer.position] @ query), abs=1e-5)
    assert [stage.budget for stage in result.plan.stages] == [ROWS, 10 if by == "query-expansion" else 100]
    assert result.plan.stages[-1].name == (by if isinstance(by, str) else "<lambda>")
    assert "re-ranked by" in str(result.plan)


def test_a_function_of_ones_own_orders_the_candidates(index):
    query = unit_vectors(1, DIM, 1)
    by_position = search(index, query, 100, lambda _, pool: [-a.position for a in pool.answers]).answers[0]
    (expected,) = plain(index, query, 100)
    assert [a.position for a in by_position] == sorted(a.position for a in expected)


def test_k_reciprocal_order_is_that_of_the_distances(index, vectors):
    query = unit_vectors(1, DIM, 1)
    (pool,) = plain(index, query, 100)
    distances = k_reciprocal_distances(query[0], vectors[[answer.position for answer in pool]])
    expected = [pool[place].id for place in np.argsort(distances, kind="stable")[:10]]
    assert [answer.id for answer in search(index, query, 10, "k-reciprocal").answers[0]] == expected


def test_expansion_searches_again_with_the_expanded_query(index, vectors):
    query = unit_vectors(1, DIM, 1)
    (first,) = plain(index, query, 10)
    again = expanded(query[0], vectors[[answer.position for answer in first]])
    expected = [answer.id for answer in plain(index, again[None], 7)[0]]
    assert [answer.id for answer in search(index, query, 7, "query-expansion").answers[0]] == expected


@pytest.mark.parametrize("by", ["query-expansion", "k-reciprocal"])
def test_what_a_filter_leaves_out_is_no_candidate_either(index, by):
    label = index.items["label"][0].as_py()
    matching = sum(value == label for value in index.items["label"].to_pylist())
    result = search(index, unit_vectors(2, DIM, 1), matching + 5, by, where=f"label = '{label}'")
    assert [{answer.label for answer in answers} for answers in result.answers] == [{label}, {label}]
    assert str(result.plan).endswith(f"{matching} of {matching + 5} answers: no more match")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda query, pool: np.zeros(3), r"a finite score for each of its 100 candidates; got \(3,\)"),
        (lambda query, pool: np.full(len(pool.answers), np.nan), "got some that are not finite"),
    ],
)
def test_scores_that_order_nothing_are_refused(index, scores, message):
    with pytest.raises(InvalidSetting, match=message):
        search(index, unit_vectors(1, DIM, 1), 5, scores)


def test_an_unknown_re_ranker_is_refused_with_those_there_are(index):
    with pytest.raises(InvalidSetting, match="query-expansion or k-reciprocal, or a function"):
        search(index, unit_vectors(1, DIM, 1), 5, "cross-encoder")

"""The blocked metrics are the definitions on whatever case: ties, duplicates, single items, one class."""

import math

import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from dml.metrics.ranking import ranked, topk_by_groups
from dml.metrics.retrieval import retrieval_metrics
from tests.metrics.cases import CASES, balanced, on_a_grid, single_items, uneven, unit

RECALL_AT = (1, 2, 5, 30)


def plain(embeddings, labels, recall_at):
    """The definitions in loops, on similarities in float64."""
    similarities = (embeddings.double() @ embeddings.double().T).tolist()
    recall, r_precision, map_at_r, without_positives = {k: [] for k in recall_at}, [], [], 0
    for query, label in enumerate(labels.tolist()):
        others = [i for i in range(len(labels)) if i != query]
        wanted = sum(int(labels[i]) == label for i in others)
        if not wanted:
            without_positives += 1
            continue
        others.sort(key=lambda i, query=query: (-similarities[query][i], i))
        hits = [int(labels[i]) == label for i in others]
        for k in recall_at:
            recall[k].append(any(hits[:k]))
        r_precision.append(sum(hits[:wanted]) / wanted)
        map_at_r.append(sum(sum(hits[: i + 1]) / (i + 1) for i in range(wanted) if hits[i]) / wanted)
    mean = lambda values: math.fsum(values) / len(values) if values else 0.0  # noqa: E731
    return {k: mean(v) for k, v in recall.items()}, mean(r_precision), mean(map_at_r), without_positives


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_number_is_that_of_the_plain_loop(case, seed):
    embeddings, labels = case(seed)
    metrics = retrieval_metrics(embeddings, labels, recall_at=RECALL_AT)
    recall, r_precision, map_at_r, without_positives = plain(embeddings, labels, RECALL_AT)
    assert metrics.recall_at == pytest.approx(recall, abs=1e-12)
    assert metrics.r_precision == pytest.approx(r_precision, abs=1e-12)
    assert metrics.map_at_r == pytest.approx(map_at_r, abs=1e-12)
    assert (metrics.num_without_positives, metrics.num_queries) == (
        without_positives,
        len(labels) - without_positives,
    )


@pytest.mark.parametrize("make", [unit, on_a_grid], ids=lambda make: make.__name__)
@pytest.mark.parametrize("columns", [997, 1024, 4001])
def test_ranking_by_groups_keeps_the_values_of_topk(columns, make):
    similarities = (make(50, 16, seed=1) @ make(columns, 16, seed=2).T).float()
    similarities[:, 3] = -torch.inf
    values, order = topk_by_groups(similarities, 11, math.isqrt(columns // 11))
    expected = similarities.topk(11, dim=1).values
    torch.testing.assert_close(values.sort(descending=True).values, expected, rtol=0, atol=0)
    torch.testing.assert_close(similarities.gather(1, order), values, rtol=0, atol=0)
    assert all(len(set(row)) == 11 for row in order.tolist())


@pytest.mark.parametrize("depth", [1, 20, 400])
@pytest.mark.parametrize("columns", [700, 9_000], ids=["at once", "by groups"])
def test_ties_rank_by_position_also_over_many_groups(columns, depth):
    similarities = (on_a_grid(20, 6, seed=1) @ on_a_grid(columns, 6, seed=2).T).float()
    similarities[3] = -torch.inf
    values, order = ranked(similarities, depth)
    expected = similarities.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :depth])
    present = values > -torch.inf
    assert torch.equal(order[present], expected.indices[:, :depth][present])


@pytest.mark.parametrize("case", [balanced, uneven, single_items], ids=lambda case: case.__name__)
def test_they_are_pytorch_metric_learnings_numbers(case):
    embeddings, labels = case(5)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    peers = AccuracyCalculator(include=names, k="max_bin_count", knn_func=_exact_knn).get_accuracy(
        embeddings, labels
    )
    ours = retrieval_metrics(embeddings, labels)
    assert [ours.recall_at[1], ours.r_precision, ours.map_at_r] == pytest.approx(
        [peers[name] for name in names]
    )


def _exact_knn(query, k, reference, ref_includes_query):
    similarities = query @ reference.T
    if ref_includes_query:
        similarities.fill_diagonal_(-torch.inf)
    values, order = similarities.topk(k, dim=1)
    return 2 - 2 * values, order


def test_duplicates_of_a_query_are_found_though_the_query_itself_is_not():
    embeddings = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]]
    alone = retrieval_metrics(embeddings, torch.tensor([0, 1, 1, 2]), recall_at=(1,))
    assert alone.recall_at[1] == 0.0
    together = retrieval_metrics(embeddings, torch.tensor([0, 0, 1, 2]), recall_at=(1,))
    assert together.recall_at[1] == 1.0
    assert together.num_without_positives == 2


def test_half_precision_is_ranked_in_float32():
    embeddings, labels = balanced(0)
    half = embeddings.half()
    assert retrieval_metrics(half, labels) == retrieval_metrics(half.float(), labels)


def test_queries_without_positives_are_zero_and_counted():
    metrics = retrieval_metrics(unit(5, 8, seed=0), torch.arange(5))
    assert metrics.as_dict() == dict.fromkeys(metrics.as_dict(), 0.0)
    assert (metrics.num_queries, metrics.num_without_positives) == (0, 5)


@pytest.mark.parametrize(
    ("labels", "recall_at", "message"),
    [
        (torch.zeros(4).long(), (1,), "same length"),
        (torch.zeros(5).long(), (), "at least one"),
        (torch.zeros(5).long(), (0,), "0"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(labels, recall_at, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(unit(5, 8, seed=0), labels, recall_at=recall_at)

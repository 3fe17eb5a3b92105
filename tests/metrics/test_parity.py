"""The peers' numbers, on cases where they differ from ours, and that they do differ."""

import math

import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from dml.metrics import parity
from dml.metrics.ranking import Items
from dml.metrics.retrieval import query_metrics, retrieval_metrics
from tests.metrics.cases import CASES, balanced, duplicates, single_items, ties, uneven

NAMES = (
    "precision_at_1",
    "r_precision",
    "mean_average_precision_at_r",
    "mean_average_precision",
    "mean_reciprocal_rank",
)


class ByPlace:
    """Exact search whose ties rank by place, as pytorch-metric-learning's search function."""

    def __call__(self, query, k, reference, ref_includes_query):
        similarities = query.double() @ reference.double().T
        if ref_includes_query:
            similarities.fill_diagonal_(-torch.inf)
        order = similarities.argsort(dim=1, descending=True, stable=True)[:, :k]
        return 2 - 2 * similarities.gather(1, order), order


def peers_metrics(queries, gallery=None, *, k, average_of_averages=False, includes=False):
    calculator = AccuracyCalculator(
        include=NAMES, k=k, avg_of_avgs=average_of_averages, knn_func=ByPlace(), device=torch.device("cpu")
    )
    if gallery is None:
        return calculator.get_accuracy(queries.embeddings, queries.labels)
    return calculator.get_accuracy(
        queries.embeddings, queries.labels, gallery.embeddings, gallery.labels, includes
    )


@pytest.mark.parametrize("average_of_averages", [False, True])
@pytest.mark.parametrize("k", ["max_bin_count", None, 2, 7])
@pytest.mark.parametrize("case", [balanced, uneven, ties, duplicates, single_items], ids=lambda c: c.__name__)
def test_pytorch_metric_learnings_numbers_are_its_own(case, k, average_of_averages):
    items = Items(*case(1))
    actual = parity.pytorch_metric_learning(items, k=k, average_of_averages=average_of_averages)
    expected = peers_metrics(items, k=k, average_of_averages=average_of_averages)
    assert actual == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("includes", [False, True], ids=["apart", "gallery includes the queries"])
@pytest.mark.parametrize("k", ["max_bin_count", None, 3])
def test_pytorch_metric_learnings_numbers_on_a_gallery_are_its_own(k, includes):
    embeddings, labels = uneven(2)
    ids = torch.arange(80)
    if includes:
        queries, gallery = Items(embeddings[:30], labels[:30], ids[:30]), Items(embeddings, labels, ids)
    else:
        queries, gallery = Items(embeddings[:30], labels[:30]), Items(embeddings[30:], labels[30:])
    actual = parity.pytorch_metric_learning(queries, gallery, k=k)
    assert actual == pytest.approx(peers_metrics(queries, gallery, k=k, includes=includes), abs=1e-6)


@pytest.mark.parametrize("case", [balanced, uneven, single_items], ids=lambda case: case.__name__)
def test_searched_deep_enough_its_numbers_equal_retrieval_metrics(case):
    embeddings, labels = case(3)
    actual = parity.pytorch_metric_learning(Items(embeddings, labels))
    ours = retrieval_metrics(embeddings, labels)
    assert [actual["precision_at_1"], actual["r_precision"], actual["mean_average_precision_at_r"]] == (
        pytest.approx([ours.recall_at[1], ours.r_precision, ours.map_at_r])
    )


@pytest.mark.parametrize("k", [2, None, "max_bin_count"])
def test_without_any_positive_it_is_nan(k):
    items = Items(balanced(0)[0][:5], torch.arange(5))
    assert all(math.isnan(value) for value in parity.pytorch_metric_learning(items, k=k).values())


def plain_confusezius(embeddings, labels, recall_at):
    """A search that includes the query, and its first column dropped."""
    similarities = (embeddings @ embeddings.T).tolist()
    names = labels.tolist()
    recall, precisions = {k: [] for k in recall_at}, []
    for query, label in enumerate(names):
        order = sorted(range(len(names)), key=lambda i, query=query: (-similarities[query][i], i))
        hits = [names[i] == label for i in order[1:]]
        for k in recall_at:
            recall[k].append(any(hits[:k]))
        size = names.count(label)
        precisions.append(
            sum(sum(hits[: i + 1]) / (i + 1) for i in range(min(size, len(hits))) if hits[i]) / size
        )
    metrics = {f"e_recall_at_{k}": sum(values) / len(values) for k, values in recall.items()}
    return metrics | {"map_c": math.fsum(precisions) / len(precisions)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_confusezius_numbers_are_those_of_dropping_the_first_column(case):
    embeddings, labels = case(4)
    actual = parity.confusezius(embeddings, labels, recall_at=(1, 2, 40))
    assert actual == pytest.approx(plain_confusezius(embeddings, labels, (1, 2, 40)), abs=1e-12)


def test_a_query_among_duplicates_finds_itself_there_and_not_here():
    embeddings = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 1]]
    labels = torch.tensor([0, 1, 0, 1])  # every copy is of the other class
    assert retrieval_metrics(embeddings, labels, recall_at=(1,)).recall_at[1] == 0.0
    assert parity.confusezius(embeddings, labels, recall_at=(1,))["e_recall_at_1"] == 0.5


def test_a_perfect_embedding_of_fives_tops_out_below_one_in_map_c():
    labels = torch.arange(50) // 5
    actual = parity.confusezius(torch.eye(10, dtype=torch.float64)[labels], labels, recall_at=(1,))
    assert actual == {"e_recall_at_1": 1.0, "map_c": pytest.approx(4 / 5)}


def plain_open_metric_learning(items, gallery, top_k, denominator):
    similarities = (items.embeddings @ gallery.embeddings.T).tolist()
    metrics = {}
    for k in top_k:
        cmc, precision, maps = [], [], []
        for query, label in enumerate(items.labels.tolist()):
            answers = [i for i in range(len(gallery.labels)) if int(gallery.ids[i]) != int(items.ids[query])]
            answers.sort(key=lambda i, query=query: (-similarities[query][i], i))
            hits = [int(gallery.labels[i]) == label for i in answers]
            relevant, hits = sum(hits), hits[:k]
            cmc.append(any(hits))
            if relevant:
                precision.append(sum(hits) / min(k, relevant))
                divisor = min(k, relevant) if denominator == "attainable" else max(sum(hits), 1)
                gain = sum(sum(hits[: i + 1]) / (i + 1) for i in range(len(hits)) if hits[i])
                maps.append(gain / divisor)
        for name, values in {"cmc": cmc, "precision": precision, "map": maps}.items():
            metrics[f"{name}_{k}"] = math.fsum(values) / len(values)
    return metrics


@pytest.mark.parametrize("denominator", ["attainable", "retrieved"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_open_metric_learnings_numbers_are_those_of_its_divisors(case, denominator):
    embeddings, labels = case(5)
    items = Items(embeddings, labels, torch.arange(len(labels)))
    top_k = tuple(k for k in (1, 3, 20) if k <= len(labels))
    actual = parity.open_metric_learning(items, top_k=top_k, denominator=denominator)
    expected = plain_open_metric_learning(items, items, top_k, denominator)
    assert actual == pytest.approx(expected, abs=1e-12)


def test_one_hit_of_five_at_rank_one_is_everything_to_one_divisor_and_a_fifth_to_another():
    embeddings = torch.eye(8, dtype=torch.float64)[[0, 0, 1, 1, 2, 3]]
    gallery = Items(embeddings, torch.tensor([7, 1, 1, 7, 7, 7]))
    query = Items(torch.eye(8, dtype=torch.float64)[[0]], torch.tensor([7]))
    actual = parity.open_metric_learning(query, gallery, top_k=(1, 2))
    assert actual["map_2"] == 1.0
    ours = query_metrics(query, gallery, map_at=(2,)).means()
    assert ours["map_at_2_by_relevant"] == 1 / 4


def test_recall_is_at_1_2_4_and_8_by_default_as_in_the_tables_of_cub_and_cars():
    embeddings, labels = torch.eye(12), torch.arange(12) // 3
    named = {f"recall_at_{k}" for k in (1, 2, 4, 8)}
    assert set(retrieval_metrics(embeddings, labels).recall_at) == {1, 2, 4, 8}
    items = Items(embeddings, labels, torch.arange(12))
    assert named == {name for name in query_metrics(items).values if name.startswith("recall")}
    recalls = [name for name in parity.confusezius(embeddings, labels) if "recall" in name]
    assert sorted(int(name.rpartition("@")[2].rpartition("_")[2]) for name in recalls) == [1, 2, 4, 8]

"""Metrics as other libraries define them, for comparison with their published tables.

Checked against pytorch-metric-learning itself, and against plain loops of what the others' code does:
Confusezius' Deep-Metric-Learning-Baselines and Revisiting_Deep_Metric_Learning_PyTorch, and
open-metric-learning. They leave the order of equal distances open; here it is the gallery's, as everywhere.
NMI is arithmetic in all of them; pytorch-metric-learning's k-means sees 256 points per centroid at most.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dml.metrics.arguments import check_choice, checked_count, checked_ranks
from dml.metrics.ranking import Items, Ranked, Ranking


def pytorch_metric_learning(
    queries: Items,
    gallery: Items | None = None,
    *,
    k: int | Literal["max_bin_count"] | None = "max_bin_count",
    average_of_averages: bool = False,
) -> dict[str, float]:
    """Retrieval metrics of pytorch-metric-learning's `AccuracyCalculator`, under its names.

    They differ from `query_metrics` if k is below R: k limits R of R-precision and the hits of MAP@R, but not
    the divisor of MAP@R.

    Args:
        queries: (Q, D) with labels.
        gallery: (N, D) with labels; None: the queries; each excludes itself. If the gallery *includes* the
            queries (`ref_includes_query`), set ids for both.
        k: search depth; None: the whole gallery (its default); "max_bin_count": the largest class.
        average_of_averages: mean over class means.

    Returns:
        NaN where no query has a positive.

    Raises:
        ValueError: a k that is none of these, or what `Items` and `Ranking` refuse.
    """
    if k is not None and k != "max_bin_count":
        k = checked_count("k", k)
    ranking = _ranking(queries, gallery)
    itself = 0 if queries.ids is None and gallery is not None else 1
    if k == "max_bin_count":
        k = max(int(ranking.relevant.max()), 1)
    depth = len(ranking.gallery.labels) - itself if k is None else k
    parts = [_accuracy_calculator(block) for block in ranking.blocks(depth)]
    labels = queries.labels[ranking.relevant > 0]
    mean = _class_mean if average_of_averages else _mean
    return {name: mean(torch.cat([part[name] for part in parts]), labels) for name in parts[0]}


def _accuracy_calculator(block: Ranked) -> dict[str, Tensor]:
    """Maps each metric to (B,) float64 for the queries of a block with a positive."""
    has_positive = block.relevant > 0
    hits, relevant = block.hits[has_positive].double(), block.relevant[has_positive]
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    within = ranks <= relevant[:, None]
    gains = hits.cumsum(1) / ranks * hits
    return {
        "precision_at_1": hits[:, 0],
        "r_precision": (hits * within).sum(1) / within.sum(1),
        "mean_average_precision_at_r": (gains * within).sum(1) / relevant,
        "mean_average_precision": gains.sum(1) / relevant,
        "mean_reciprocal_rank": (hits / ranks).amax(1),
    }


def confusezius(
    embeddings: Tensor, labels: Tensor, *, recall_at: Sequence[int] = (1, 2, 4, 8)
) -> dict[str, float]:
    """`e_recall@K` of both Confusezius repositories, and `mAP_c` of the later one.

    They drop the first column of a search that includes the query. Among duplicates that is not always the
    query, which then finds itself: R@1 of duplicates is inflated. Queries without a positive count as misses.
    `mAP_c` looks at as many answers as the query's class has members, *itself included*, and divides by that:
    a perfect embedding of classes of n gets (n - 1) / n, over all about 0.81 on SOP and 0.98 on CUB200-2011.

    Returns:
        `e_recall_at_K...`, `map_c`.

    Raises:
        ValueError: no K, a K that is no whole number or below 1, or what `Items` and `Ranking` refuse.
    """
    recall_at = checked_ranks("recall_at", recall_at)
    ranking = _ranking(
        Items(embeddings, labels), Items(embeddings, labels)
    )  # without ids no pair is excluded
    sizes = ranking.relevant
    depth = max(int(sizes.max()), *recall_at) + 1
    recalls: dict[int, list[Tensor]] = {k: [] for k in recall_at}
    precisions = []
    for block in ranking.blocks(depth):
        hits = block.hits[:, 1:].double()
        for k in recall_at:
            recalls[k].append(hits[:, :k].sum(1) > 0)
        ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
        within = ranks <= block.relevant[:, None]
        precisions.append((hits.cumsum(1) / ranks * hits * within).sum(1) / block.relevant)
    means = {f"e_recall_at_{k}": float(torch.cat(parts).double().mean()) for k, parts in recalls.items()}
    return means | {"map_c": float(torch.cat(precisions).mean())}


def open_metric_learning(
    queries: Items,
    gallery: Items | None = None,
    *,
    top_k: Sequence[int] = (1, 5),
    denominator: Literal["attainable", "retrieved"] = "retrieved",
) -> dict[str, float]:
    """CMC, precision and MAP of open-metric-learning at each K.

    Its precision divides by min(K, R), so a perfect model gets 1. Its MAP divides by min(K, R) where it takes
    a distance matrix ("attainable"), by the hits among the K where it takes retrieved ids ("retrieved"). A
    query without a positive is a miss of CMC (there it is 1 where nothing was retrieved either, which can't
    be here); its precision and MAP are 0/0, which is left out of these means.

    Args:
        queries: (Q, D) with labels; equal ids, or sequence ids given as `ids`, are ignored as it does.
        gallery: (N, D) with labels; None: the queries.
        top_k: each K, cut to the gallery's size.
        denominator: of MAP.

    Returns:
        `cmc_K`, `precision_K`, `map_K`.

    Raises:
        ValueError: no K, a K that is no whole number or below 1, another denominator, or what `Items` and
            `Ranking` refuse.
    """
    top_k = checked_ranks("top_k", top_k)
    check_choice("denominator", denominator, ("attainable", "retrieved"))
    ranking = _ranking(queries, gallery)
    columns: dict[str, list[Tensor]] = {}
    size = len(ranking.gallery.labels)
    for block in ranking.blocks(max(top_k)):
        hits, has_positive = block.hits.double(), block.relevant > 0
        ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
        gains = hits.cumsum(1) / ranks * hits
        for k in (min(k, size) for k in top_k):
            counted = hits[:, :k].sum(1)
            attainable = block.relevant.clamp(max=k)
            divisor = attainable if denominator == "attainable" else counted.clamp(min=1)
            columns.setdefault(f"cmc_{k}", []).append((counted > 0).double())
            columns.setdefault(f"precision_{k}", []).append((counted / attainable)[has_positive])
            columns.setdefault(f"map_{k}", []).append((gains[:, :k].sum(1) / divisor)[has_positive])
    return {name: float(torch.cat(parts).mean()) for name, parts in columns.items()}


def _ranking(queries: Items, gallery: Items | None) -> Ranking:
    ranking = Ranking(queries, gallery)
    num_queries, num_items = len(ranking.queries.labels), len(ranking.gallery.labels)
    if not num_queries or not num_items:
        raise ValueError(
            f"These metrics need a query and a gallery item; got {num_queries} queries and {num_items} "
            "gallery items."
        )
    return ranking


def _mean(values: Tensor, _labels: Tensor) -> float:
    return float(values.mean())


def _class_mean(values: Tensor, labels: Tensor) -> float:
    return float(torch.stack([values[labels == label].mean() for label in torch.unique(labels)]).mean())

"""Recall@K, precision, R-precision and variants of MAP for every query, in one pass.

`ranking` defines which pairs are excluded. A query without a positive is excluded from every mean, as in
pytorch-metric-learning, and counted in `num_without_positives`. A K larger than the gallery means the whole
gallery.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dml.metrics.arguments import check_vector, checked_choices, checked_count, checked_ranks
from dml.metrics.ranking import Items, Ranked, Ranking

RECALL_DEPTH = 64
"""For recall, first hits up to this rank are found by sorting, those beyond by counting."""

MapDenominator = Literal["relevant", "attainable", "retrieved"]
"""Divisor of the sum of precisions at the hits among the K nearest; R is the number of positives.

"relevant": R; below 1 even for a perfect ranking if K < R (pytorch-metric-learning `mean_average_precision`);
"attainable": min(K, R); 1 for a perfect ranking (open-metric-learning from a distance matrix);
"retrieved": hits among the K; 1 for a single hit at rank 1 (open-metric-learning from retrieved ids).
"""


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries with at least one positive in the gallery."""

    recall_at: dict[int, float]
    """Fraction of queries with at least one positive among the K nearest."""
    r_precision: float
    """Fraction of positives among the R nearest, where R is the number of positives in the gallery."""
    map_at_r: float
    """Mean over the R nearest of precision at each hit. Musgrave et al. 2020, arXiv:2003.08505, sec. 3.2."""
    num_queries: int
    num_without_positives: int

    def as_dict(self) -> dict[str, float]:
        """Flat, with one name per number: `recall_at_1`, `map_at_r`, ..."""
        recalls = {f"recall_at_{k}": value for k, value in self.recall_at.items()}
        return {**recalls, "r_precision": self.r_precision, "map_at_r": self.map_at_r}


@dataclass(frozen=True)
class QueryMetrics:
    """All metrics of each query with a positive in the gallery: M of Q queries."""

    values: dict[str, Tensor]
    """Name to (M,) float64, in [0, 1]."""
    labels: Tensor
    """(M,) int64."""
    rows: Tensor
    """(M,) int64, ascending: rows of these queries among all Q."""
    num_without_positives: int
    """Queries without a positive in the gallery."""

    def means(self) -> dict[str, float]:
        """Means over queries; 0 if there are none."""
        # On the CPU, for a GPU adds up in another order: the same queries give the same mean anywhere.
        return {name: float(v.cpu().mean()) if len(v) else 0.0 for name, v in self.values.items()}

    def class_means(self) -> dict[str, float]:
        """Means over classes of the mean over their queries (macro average); 0 if there are none."""
        if not len(self.labels):
            return dict.fromkeys(self.values, 0.0)
        classes, sizes = torch.unique(self.labels.cpu(), return_inverse=True, return_counts=True)[1:]
        return {
            name: float((torch.zeros(len(sizes)).to(v).index_add_(0, classes, v) / sizes).mean())
            for name, v in self.cpu().values.items()
        }

    def select(self, mask: Tensor) -> "QueryMetrics":
        """The metrics of some queries.

        Args:
            mask: (Q,) bool over all queries, including those without a positive.

        Raises:
            ValueError: the mask does not have one value per query.
        """
        check_vector("mask", mask, "bool")
        num_queries = len(self.rows) + self.num_without_positives
        if len(mask) != num_queries:
            raise ValueError(
                f"mask must have one value for each of the {num_queries} queries; got {len(mask)}. Include "
                "the queries without a positive."
            )
        is_selected = mask[self.rows]
        return QueryMetrics(
            {name: values[is_selected] for name, values in self.values.items()},
            self.labels[is_selected],
            self.rows[is_selected],
            int(mask.sum()) - int(is_selected.sum()),
        )

    def cpu(self) -> "QueryMetrics":
        """The same metrics on the CPU."""
        return QueryMetrics(
            {name: values.cpu() for name, values in self.values.items()},
            self.labels.cpu(),
            self.rows.cpu(),
            self.num_without_positives,
        )


def joined(parts: Sequence[QueryMetrics], sizes: Sequence[int]) -> QueryMetrics:
    """Concatenates the metrics of blocks of queries that searched the same gallery.

    Args:
        parts: metrics of each block in the order of the queries, with the same K.
        sizes: number of queries of each block, including those without a positive.

    Raises:
        ValueError: there is no part, or not one size per part.
    """
    if not parts or len(parts) != len(sizes):
        raise ValueError(
            f"parts and sizes must have the same length, one or more; got {len(parts)} and {len(sizes)}. "
            "Pass the number of queries of each part."
        )
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return QueryMetrics(
        values={name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values},
        labels=torch.cat([part.labels for part in parts]),
        rows=torch.cat([part.rows + start for part, start in zip(parts, starts, strict=True)]),
        num_without_positives=sum(part.num_without_positives for part in parts),
    )


def query_metrics(
    queries: Items,
    gallery: Items | None = None,
    *,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    precision_at: Sequence[int] = (),
    map_at: Sequence[int] = (),
    map_denominators: Sequence[MapDenominator] = ("relevant", "attainable"),
    full_map: bool = False,
    recall_depth: int = RECALL_DEPTH,
    block_elements: int | None = None,
) -> QueryMetrics:
    """Retrieval metrics of every query against the gallery, or against all other queries.

    Args:
        queries: (Q, D) with labels.
        gallery: (N, D) with labels; None: the queries; each query excludes itself.
        recall_at: K of `recall_at_K`, which equals CMC at rank K; P@1 is `recall_at_1`.
        precision_at: K of `precision_at_K`: fraction of positives among the K nearest.
        map_at: K of `map_at_K_by_DENOMINATOR`.
        map_denominators: see `MapDenominator`.
        full_map: also compute `map`, the average precision over the whole ranking (Market-1501, without the
            trapezoids of its first evaluation code). It sorts the whole gallery, which takes several times
            as long.
        recall_depth: number of answers sorted for recall; first hits beyond are found by counting.
        block_elements: similarities in one block; None: as many as suit the device.

    Returns:
        `recall_at_K...`, `r_precision`, `map_at_r` and the others, per query. Sorts the max(K, R_max)
        nearest, but at most `recall_depth` for recall. Memory O(Q x metrics) plus one block.

    Raises:
        ValueError: an empty `recall_at`, a K that is not an integer of at least 1, an unknown denominator, or
            invalid `Items` or `Ranking`.

    Source: Musgrave et al. 2020, arXiv:2003.08505, sec. 3.2; Zheng et al. 2015 (Market-1501).
    """
    selection = _Selection(
        checked_ranks("recall_at", recall_at),
        checked_ranks("precision_at", precision_at, may_be_empty=True),
        checked_ranks("map_at", map_at, may_be_empty=True),
        checked_choices("map_denominators", map_denominators, get_args(MapDenominator)),
        full_map,
    )
    ranking = Ranking(queries, gallery, block_elements=block_elements)
    depth = selection.depth(ranking, checked_count("recall_depth", recall_depth))
    has_positive = ranking.relevant > 0
    every_first_hit = max(selection.recall_at) > depth
    blocks = ranking.blocks(depth, every_first_hit=every_first_hit) if has_positive.any() else ()
    parts = [selection.compute(block) for block in blocks] or [
        selection.compute(_no_query(has_positive.device))
    ]
    return QueryMetrics(
        values={name: torch.cat([part[name] for part in parts]) for name in parts[0]},
        labels=queries.labels[has_positive],
        rows=torch.arange(len(has_positive), device=has_positive.device)[has_positive],
        num_without_positives=int((~has_positive).sum()),
    )


@dataclass(frozen=True)
class _Selection:
    """The metrics to compute, with their K; see `query_metrics`."""

    recall_at: Sequence[int]
    precision_at: Sequence[int]
    map_at: Sequence[int]
    map_denominators: Sequence[MapDenominator]
    full_map: bool

    def depth(self, ranking: Ranking, recall_depth: int) -> int:
        """The number of nearest items to sort."""
        size = len(ranking.gallery.labels)
        if self.full_map:
            return size
        max_relevant = int(ranking.relevant.max()) if len(ranking.relevant) else 0
        # Recall needs only the first hit, usually at a small rank; larger ranks are counted, not sorted.
        for_recall = min(max(self.recall_at), recall_depth)
        return min(max(*self.precision_at, *self.map_at, max_relevant, for_recall), size)

    def compute(self, block: Ranked) -> dict[str, Tensor]:
        """Maps each metric to (B,) float64 for the queries of a block with a positive."""
        sums = _Sums(block)
        values = {f"recall_at_{k}": (sums.first_hit <= k).double() for k in self.recall_at}
        values |= {f"precision_at_{k}": sums.hits_at(k) / k for k in self.precision_at}
        values["r_precision"] = sums.hits_at(sums.relevant) / sums.relevant
        values["map_at_r"] = sums.gain_at(sums.relevant) / sums.relevant
        values |= {
            f"map_at_{k}_by_{denominator}": sums.gain_at(k) / sums.denominator(k, denominator)
            for k in self.map_at
            for denominator in self.map_denominators
        }
        if self.full_map:
            values["map"] = sums.gain_at(block.hits.shape[1]) / sums.relevant
        return values


def _no_query(device: torch.device) -> Ranked:
    none = torch.zeros(0, 1, device=device)
    return Ranked(slice(0), none.bool(), none[:, 0].long(), none[:, 0].long(), none.long(), none)


class _Sums:
    """Cumulative hits and precisions for the queries of a block with a positive; a metric is one look-up."""

    def __init__(self, block: Ranked) -> None:
        has_positive = block.relevant > 0
        self.relevant, self.first_hit = block.relevant[has_positive], block.first_hit[has_positive]
        hits = block.hits[has_positive]
        self._hits = hits.cumsum(1, dtype=torch.float64)
        ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
        self._gains = (self._hits / ranks * hits).cumsum(1)

    def hits_at(self, rank: int | Tensor) -> Tensor:
        """(B,) float64: number of hits up to a rank, which is one for all queries or (B,) one per query."""
        return _at(self._hits, rank)

    def gain_at(self, rank: int | Tensor) -> Tensor:
        """(B,) float64: sum of the precisions at the hits up to a rank."""
        return _at(self._gains, rank)

    def denominator(self, k: int, name: MapDenominator) -> Tensor:
        if name == "relevant":
            return self.relevant
        return self.relevant.clamp(max=k) if name == "attainable" else self.hits_at(k).clamp(min=1)


def _at(cumulative: Tensor, rank: int | Tensor) -> Tensor:
    depth = cumulative.shape[1]
    if isinstance(rank, int):
        return cumulative[:, min(rank, depth) - 1]
    return cumulative.gather(1, (rank.clamp(max=depth) - 1)[:, None])[:, 0]


def retrieval_metrics(
    embeddings: Tensor, labels: Tensor, *, recall_at: Sequence[int] = (1, 2, 4, 8)
) -> RetrievalMetrics:
    """Mean retrieval metrics where every row is a query and all other rows are its gallery.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        recall_at: the K of Recall@K.

    Returns:
        Exact metrics; all 0 if no class has two rows. Memory O(N) plus one block of similarities.

    Raises:
        ValueError: see `query_metrics`.
    """
    recall_at = checked_ranks("recall_at", recall_at)
    metrics = query_metrics(Items(embeddings, labels), recall_at=recall_at)
    means = metrics.means()
    return RetrievalMetrics(
        recall_at={k: means[f"recall_at_{k}"] for k in recall_at},
        r_precision=means["r_precision"],
        map_at_r=means["map_at_r"],
        num_queries=len(metrics.rows),
        num_without_positives=metrics.num_without_positives,
    )

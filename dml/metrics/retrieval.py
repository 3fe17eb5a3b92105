"""Recall@K, precision, R-precision, MAP in all its spellings: one pass, one value per query.

Policy: what a query may find is said in `ranking`; a query without a positive is left out of every mean,
as in pytorch-metric-learning, and counted apart (`num_without_positives`). A K beyond the gallery means all
of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dml.metrics.arguments import check_vector, checked_choices, checked_count, checked_ranks
from dml.metrics.ranking import BLOCK_ELEMENTS, Items, Ranked, Ranking

RECALL_DEPTH = 64
"""Up to which rank first hits are ranked for recall; those beyond are counted."""

MapDenominator = Literal["relevant", "attainable", "retrieved"]
"""What the sum of precisions at the K nearest's hits is divided by; R is how many there are to find.

"relevant": R, so 1 is out of reach where K < R (pytorch-metric-learning's `mean_average_precision`);
"attainable": min(K, R), so a perfect ranking gets 1 (open-metric-learning, from a distance matrix);
"retrieved": the hits among the K, so one hit at rank 1 is 1 whatever R (the same, from retrieved ids).
"""


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries with at least one positive in the gallery."""

    recall_at: dict[int, float]
    """Share of queries with at least one of their class among the K nearest."""
    r_precision: float
    """Share of the R nearest that are of the query's class, R being how many of it there are."""
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
    """Every metric of every query with a positive in the gallery; M of them among all Q queries."""

    values: dict[str, Tensor]
    """Name to (M,) float64, in [0, 1]."""
    labels: Tensor
    """(M,) int64."""
    rows: Tensor
    """(M,) int64: which of the queries given, ascending."""
    num_without_positives: int
    """Queries without a positive in the gallery."""

    def means(self) -> dict[str, float]:
        """Every query weighs the same; 0 where there is none."""
        return {name: float(v.mean()) if len(v) else 0.0 for name, v in self.values.items()}

    def class_means(self) -> dict[str, float]:
        """Every class weighs the same, however many queries it has (macro); 0 where there is none."""
        if not len(self.labels):
            return dict.fromkeys(self.values, 0.0)
        classes, sizes = torch.unique(self.labels, return_inverse=True, return_counts=True)[1:]
        return {
            name: float((torch.zeros(len(sizes)).to(v).index_add_(0, classes, v) / sizes).mean())
            for name, v in self.values.items()
        }

    def of(self, chosen: Tensor) -> "QueryMetrics":
        """The queries of a slice.

        Args:
            chosen: (Q,) bool over all queries, those without a positive among them.

        Raises:
            ValueError: not one truth value for each query.
        """
        check_vector("chosen", chosen, "bool")
        num_queries = len(self.rows) + self.num_without_positives
        if len(chosen) != num_queries:
            raise ValueError(
                f"chosen must have one truth value for each of the {num_queries} queries; "
                f"got {len(chosen)}. Count the queries without a positive too."
            )
        kept = chosen[self.rows]
        return QueryMetrics(
            {name: values[kept] for name, values in self.values.items()},
            self.labels[kept],
            self.rows[kept],
            int(chosen.sum()) - int(kept.sum()),
        )

    def cpu(self) -> "QueryMetrics":
        """The same, off the GPU."""
        return QueryMetrics(
            {name: values.cpu() for name, values in self.values.items()},
            self.labels.cpu(),
            self.rows.cpu(),
            self.num_without_positives,
        )


def joined(parts: Sequence[QueryMetrics], sizes: Sequence[int]) -> QueryMetrics:
    """The metrics of all queries, of which each block has searched the same gallery.

    Args:
        parts: each block's, in the queries' order, with the same K.
        sizes: the number of queries of each, those without a positive among them.

    Raises:
        ValueError: no part, or not one size for each.
    """
    if not parts or len(parts) != len(sizes):
        raise ValueError(
            f"parts and sizes must be equally many, one or more; got {len(parts)} and {len(sizes)}. Pass the "
            "number of queries of each part."
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
    block_elements: int = BLOCK_ELEMENTS,
) -> QueryMetrics:
    """Every query against the gallery, or against all the other queries.

    Args:
        queries: (Q, D) with labels.
        gallery: (N, D) with labels; None: the queries themselves, each without itself.
        recall_at: K of `recall_at_K`, which is also CMC at rank K; P@1 is `recall_at_1`.
        precision_at: K of `precision_at_K`: share of the K nearest that are of the query's label.
        map_at: K of `map_at_K_by_DENOMINATOR`.
        map_denominators: see `MapDenominator`.
        full_map: also `map`, average precision over the whole ranking (Market-1501's, without the trapezoids
            of its first evaluation code); ranks the whole gallery, several times the cost.
        recall_depth: for recall alone no more answers are ranked; first hits beyond are counted.
        block_elements: similarities held at a time.

    Returns:
        `recall_at_K...`, `r_precision`, `map_at_r` and the others, per query. Ranks the max(K, R_max)
        nearest, but no more than `recall_depth` for recall. Memory O(Q x metrics) beyond one block.

    Raises:
        ValueError: no K at all, a K that is no whole number or below 1, an unknown denominator, or what
            `Items` and `Ranking` refuse.

    Source: Musgrave et al. 2020, arXiv:2003.08505, sec. 3.2; Zheng et al. 2015 (Market-1501).
    """
    wanted = _Wanted(
        checked_ranks("recall_at", recall_at),
        checked_ranks("precision_at", precision_at, may_be_empty=True),
        checked_ranks("map_at", map_at, may_be_empty=True),
        checked_choices("map_denominators", map_denominators, get_args(MapDenominator)),
        full_map,
    )
    ranking = Ranking(queries, gallery, block_elements=block_elements)
    depth = wanted.depth(ranking, checked_count("recall_depth", recall_depth))
    has_positive = ranking.relevant > 0
    every_first_hit = max(wanted.recall_at) > depth
    blocks = ranking.blocks(depth, every_first_hit=every_first_hit) if has_positive.any() else ()
    parts = [wanted.of(block) for block in blocks] or [wanted.of(_no_query(has_positive.device))]
    return QueryMetrics(
        values={name: torch.cat([part[name] for part in parts]) for name in parts[0]},
        labels=queries.labels[has_positive],
        rows=torch.arange(len(has_positive), device=has_positive.device)[has_positive],
        num_without_positives=int((~has_positive).sum()),
    )


@dataclass(frozen=True)
class _Wanted:
    """Which metrics, and each K; see `query_metrics`."""

    recall_at: Sequence[int]
    precision_at: Sequence[int]
    map_at: Sequence[int]
    map_denominators: Sequence[MapDenominator]
    full_map: bool

    def depth(self, ranking: Ranking, recall_depth: int) -> int:
        """How many of the nearest must be ranked."""
        size = len(ranking.gallery.labels)
        if self.full_map:
            return size
        most = int(ranking.relevant.max()) if len(ranking.relevant) else 0
        # Recall needs first hits alone: most lie near; what comes before the others is counted, not ranked.
        near = min(max(self.recall_at), recall_depth)
        return min(max(*self.precision_at, *self.map_at, most, near), size)

    def of(self, block: Ranked) -> dict[str, Tensor]:
        """Name to (B,) float64, of the block's queries with a positive."""
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
    """Cumulative hits and gains of a block's queries with a positive: every metric is one look-up."""

    def __init__(self, block: Ranked) -> None:
        has_positive = block.relevant > 0
        self.relevant, self.first_hit = block.relevant[has_positive], block.first_hit[has_positive]
        hits = block.hits[has_positive]
        self._hits = hits.cumsum(1, dtype=torch.float64)
        ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
        self._gains = (self._hits / ranks * hits).cumsum(1)

    def hits_at(self, rank: int | Tensor) -> Tensor:
        """(B,) float64: how many hits among the nearest; one rank for all queries, or (B,) one for each."""
        return _at(self._hits, rank)

    def gain_at(self, rank: int | Tensor) -> Tensor:
        """(B,) float64: the sum of the precisions at the hits among the nearest."""
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
    """The usual means, every row a query among all the others.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        recall_at: the K of Recall@K.

    Returns:
        Exact metrics; all 0 where no class has two members. Memory O(N) beyond one block of similarities.

    Raises:
        ValueError: as `query_metrics`.
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

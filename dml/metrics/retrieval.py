"""Recall@K, precision, R-precision, MAP in all its spellings and CMC: one pass, one value per query.

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
from dml.metrics.ranking import Items, Ranked, Ranking

_RECALL_RANKED = 64

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
    first_hit: Tensor
    """(M,) int64: rank of the nearest of its label, from 1; `depth + 1` where it lies beyond."""
    depth: int
    """Up to which rank first hits are known."""
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
            self.first_hit[kept],
            self.depth,
            int(chosen.sum()) - int(kept.sum()),
        )

    def cpu(self) -> "QueryMetrics":
        """The same, off the GPU."""
        return QueryMetrics(
            {name: values.cpu() for name, values in self.values.items()},
            self.labels.cpu(),
            self.rows.cpu(),
            self.first_hit.cpu(),
            self.depth,
            self.num_without_positives,
        )

    def cmc(self, max_rank: int) -> Tensor:
        """(max_rank,) float64 cumulative matching characteristic: share of queries answered by rank r.

        Raises:
            ValueError: ranks that were not looked at.
        """
        if checked_count("max_rank", max_rank) > self.depth:
            raise ValueError(
                f"max_rank must lie in [1, {self.depth}], what was ranked; got {max_rank}. Ask for a larger "
                "recall_at."
            )
        counts = torch.bincount(self.first_hit, minlength=max_rank + 1)[1 : max_rank + 1]
        return counts.cumsum(0).double() / max(len(self.first_hit), 1)


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
    depth = min(part.depth for part in parts)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return QueryMetrics(
        values={name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values},
        labels=torch.cat([part.labels for part in parts]),
        rows=torch.cat([part.rows + start for part, start in zip(parts, starts, strict=True)]),
        first_hit=torch.cat([part.first_hit for part in parts]).clamp(max=depth + 1),
        depth=depth,
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

    Returns:
        `recall_at_K...`, `r_precision`, `map_at_r` and what else was asked for, per query. Ranks the
        max(K, R_max) nearest, but no more than 64 for recall. Memory O(Q x metrics) beyond one block.

    Raises:
        ValueError: no K at all, a K that is no whole number or below 1, an unknown denominator, or what
            `Items` and `Ranking` refuse.

    Source: Musgrave et al. 2020, arXiv:2003.08505, sec. 3.2; Zheng et al. 2015 (Market-1501).
    """
    recall_at = checked_ranks("recall_at", recall_at)
    precision_at = checked_ranks("precision_at", precision_at, may_be_empty=True)
    map_at = checked_ranks("map_at", map_at, may_be_empty=True)
    denominators: tuple[MapDenominator, ...] = checked_choices(
        "map_denominators", map_denominators, get_args(MapDenominator)
    )
    ranking = Ranking(queries, gallery)
    asked = ranking.relevant > 0
    size = len(ranking.gallery.labels)
    most = int(ranking.relevant.max()) if len(asked) else 0
    # Recall needs first hits alone: most lie near, and what comes before the others is counted, not ranked.
    reach = max(recall_at)
    depth = size if full_map else min(max([*precision_at, *map_at, most, min(reach, _RECALL_RANKED)]), size)

    def judged(found: "_Found") -> dict[str, Tensor]:
        values = {f"recall_at_{k}": (found.first_hit <= k).double() for k in recall_at}
        values |= {f"precision_at_{k}": found.hits_at(k) / k for k in precision_at}
        values["r_precision"] = found.hits_at(found.relevant) / found.relevant
        values["map_at_r"] = found.gain_at(found.relevant) / found.relevant
        values |= {
            f"map_at_{k}_by_{denominator}": found.gain_at(k) / found.denominator(k, denominator)
            for k in map_at
            for denominator in denominators
        }
        return values | ({"map": found.gain_at(size) / found.relevant} if full_map else {})

    parts, first_hits = [], []
    for block in ranking.blocks(depth, every_first_hit=reach > depth) if asked.any() else ():
        found = _Found(block)
        parts.append(judged(found))
        first_hits.append(found.first_hit)
    device = asked.device
    if not parts:
        none, empty = ranking.relevant[:0], asked.new_zeros(0, 1)
        nobody = Ranked(slice(0), empty, none, none, empty.long(), empty.float())
        parts, first_hits = [judged(_Found(nobody))], [ranking.relevant[:0]]
    return QueryMetrics(
        values={name: torch.cat([part[name] for part in parts]) for name in parts[0]},
        labels=queries.labels[asked],
        rows=torch.arange(len(asked), device=device)[asked],
        first_hit=torch.cat(first_hits),
        depth=size if reach > depth else depth,
        num_without_positives=int((~asked).sum()),
    )


class _Found:
    """A block's cumulative hits and gains, of queries with a positive: every metric is one look-up."""

    def __init__(self, block: Ranked) -> None:
        asked = block.relevant > 0
        self.relevant, self.first_hit = block.relevant[asked], block.first_hit[asked]
        self._hits = block.hits[asked]
        self._found = self._hits.cumsum(1, dtype=torch.float64)
        ranks = torch.arange(1, self._hits.shape[1] + 1, device=self._hits.device)
        self._gains = (self._found / ranks * self._hits).cumsum(1)

    def hits_at(self, rank: int | Tensor) -> Tensor:
        """(B,) float64: how many hits among the nearest; one rank for all queries, or (B,) one for each."""
        return _at(self._found, rank)

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
    found = query_metrics(Items(embeddings, labels), recall_at=recall_at)
    means = found.means()
    return RetrievalMetrics(
        recall_at={k: means[f"recall_at_{k}"] for k in recall_at},
        r_precision=means["r_precision"],
        map_at_r=means["map_at_r"],
        num_queries=len(found.rows),
        num_without_positives=found.num_without_positives,
    )

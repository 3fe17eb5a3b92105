"""Recall@K, R-precision and MAP@R in one pass over blocks of queries.

Policy: a query never meets itself (it is left out by its place, not by its distance, so duplicates count);
equal similarities rank by place; a query whose class has no other member can find nothing and is left out of
every mean, as in pytorch-metric-learning, and counted apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dml.similarity import cosine_similarities

_BLOCK_ELEMENTS = 1 << 25  # similarities held at a time: 128 MiB of float32
_SMALLEST_GROUP = 4  # below, ranking whole groups costs more than it saves


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries that have somebody to find."""

    recall_at: dict[int, float]
    """Share of queries with at least one of their class among the K nearest."""
    r_precision: float
    """Share of the R nearest that are of the query's class, R being how many of it there are."""
    map_at_r: float
    """Mean over the R nearest of precision at each hit. Musgrave et al. 2020, arXiv:2003.08505, sec. 3.2."""
    num_queries: int
    num_lone: int

    def as_dict(self) -> dict[str, float]:
        """Flat, with one name per number: `recall_at_1`, `map_at_r`, ..."""
        recalls = {f"recall_at_{k}": value for k, value in self.recall_at.items()}
        return {**recalls, "r_precision": self.r_precision, "map_at_r": self.map_at_r}


def retrieval_metrics(
    embeddings: Tensor, labels: Tensor, *, recall_at: Sequence[int] = (1, 2, 4, 8)
) -> RetrievalMetrics:
    """Every row is a query among all the others.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        recall_at: the K of Recall@K.

    Returns:
        Exact metrics; all 0 where no class has two members. Memory O(N) beyond one block of similarities.

    Raises:
        ValueError: embeddings and labels differ in length, or a K is below 1.
    """
    if len(embeddings) != len(labels):
        raise ValueError(f"embeddings and labels must be equally long; got {len(embeddings)}, {len(labels)}.")
    if not recall_at or min(recall_at) < 1:
        raise ValueError(f"recall_at must name at least one K, all of them 1 or more; got {list(recall_at)}.")
    _, dense, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    relevant = sizes[dense] - 1
    num_lone = int((relevant == 0).sum())
    num_queries = len(labels) - num_lone
    if num_queries == 0:
        return RetrievalMetrics(dict.fromkeys(recall_at, 0.0), 0.0, 0.0, 0, num_lone)
    depth = min(max(*recall_at, int(relevant.max())), len(labels) - 1)
    recalls = torch.zeros(len(recall_at), dtype=torch.int64)
    r_precision = map_at_r = 0.0
    block = max(_BLOCK_ELEMENTS // len(labels), 1)
    for start in range(0, len(labels), block):
        rows = slice(start, start + block)
        hits = _hits(embeddings, dense, rows, depth)
        wanted = relevant[rows]
        asked = wanted > 0
        hits, wanted = hits[asked], wanted[asked]
        found = hits.cumsum(1)
        recalls += torch.stack([(found[:, min(k, depth) - 1] > 0).sum() for k in recall_at]).cpu()
        ranks = torch.arange(1, depth + 1, device=hits.device)
        relevant_hits = (hits & (ranks <= wanted[:, None])).double()
        r_precision += float((relevant_hits.sum(1) / wanted).sum())
        map_at_r += float(((found / ranks.double() * relevant_hits).sum(1) / wanted).sum())
    return RetrievalMetrics(
        recall_at={k: int(value) / num_queries for k, value in zip(recall_at, recalls, strict=True)},
        r_precision=r_precision / num_queries,
        map_at_r=map_at_r / num_queries,
        num_queries=num_queries,
        num_lone=num_lone,
    )


def _hits(embeddings: Tensor, labels: Tensor, rows: slice, depth: int) -> Tensor:
    """(block, depth) bool: whether the query's r-th nearest is of its class; ties by place."""
    similarities = cosine_similarities(embeddings[rows], embeddings)
    queries = torch.arange(len(similarities), device=similarities.device)
    similarities[queries, queries + rows.start] = -torch.inf
    values, order = _nearest(similarities, min(depth + 1, similarities.shape[1]))
    # topk leaves the order of ties open: restore it inside, redo the rows where one reaches over the edge.
    order, by_place = order.sort(1)
    values, by_value = values.gather(1, by_place).sort(dim=1, descending=True, stable=True)
    order = order.gather(1, by_value)
    if values.shape[1] > depth:
        tied = values[:, depth - 1] == values[:, depth]
        if tied.any():
            full = similarities[tied].argsort(dim=1, descending=True, stable=True)
            order[tied] = full[:, : order.shape[1]]
    return labels[order[:, :depth]] == labels[rows, None]


def _nearest(similarities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`similarities.topk(count)` in unspecified order, several times faster for few among many.

    The columns are dealt into groups. The `count` largest values lie in the `count` groups of largest maxima
    (and the columns left over), so only those are ranked: a pass of maxima, not a selection over all columns.
    """
    num_columns = similarities.shape[1]
    size = math.isqrt(num_columns // count)
    if size < _SMALLEST_GROUP:
        return similarities.topk(count, dim=1, sorted=False)
    num_groups = num_columns // size
    dealt = num_groups * size
    dealt_out = similarities[:, :dealt].view(-1, size, num_groups)
    groups = dealt_out.amax(1).topk(count, dim=1, sorted=False).indices
    members = dealt_out.gather(2, groups[:, None, :].expand(-1, size, -1)).flatten(1)
    candidates = torch.cat([members, similarities[:, dealt:]], dim=1)
    values, chosen = candidates.topk(count, dim=1, sorted=False)
    in_group = chosen // count * num_groups + groups.gather(1, chosen % count)
    left_over = chosen - members.shape[1] + dealt
    return values, torch.where(chosen < members.shape[1], in_group, left_over)

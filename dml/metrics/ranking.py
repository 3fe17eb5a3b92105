"""Exact nearest neighbours of queries in a gallery, in blocks of queries.

A query is excluded from its own answers by its id, not by distance and not by dropping the first answer, so
duplicates of a query count. With `groups`, pairs with the same label and the same group (e.g. camera) are
also excluded. Ties are ordered by position in the gallery.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dml.metrics.arguments import check_labelled, check_one_device, check_unit_rows, checked_count
from dml.similarity import cosine_similarities

BLOCK_ELEMENTS, GPU_BLOCK_ELEMENTS = 1 << 25, 1 << 27
"""Similarities in one block: 128 and 512 MiB of float32. A GPU's costs 140 launches, whatever its size."""
_ELEMENTS_PER_RANK = 4  # memory of ranking and counting per answer, in units of a similarity
_COUNTED_ELEMENTS = 1 << 20
"""Similarities counted at a time on a CPU, 4 MiB: they fit a cache. A GPU counts a whole block at once."""
# One core, topk over topk_by_groups: 1.2 to 5.9 times from 8,000 columns on, 0.5 to 1.5 times up to 2,000.
_FEWEST_GROUPED_COLUMNS, _SMALLEST_GROUP = 8_000, 4


@dataclass(frozen=True)
class Items:
    """Labelled embeddings: the queries, or the gallery."""

    embeddings: Tensor
    """(N, D) float, unit length."""
    labels: Tensor
    """(N,) int64 class ids."""
    ids: Tensor | None = None
    """(N,) int64; a query and an answer with the same id are the same item, and the pair is excluded."""
    groups: Tensor | None = None
    """(N,) int64; pairs with the same label and the same group are excluded: neither right nor wrong."""

    def __post_init__(self) -> None:
        check_labelled(self.embeddings, self.labels, ids=self.ids, groups=self.groups)

    def select(self, rows: slice | Tensor) -> "Items":
        """The items of some rows; views if `rows` is a slice."""
        return Items(
            self.embeddings[rows],
            self.labels[rows],
            None if self.ids is None else self.ids[rows],
            None if self.groups is None else self.groups[rows],
        )


@dataclass(frozen=True)
class Ranked:
    """The nearest gallery items of a block of queries."""

    rows: slice
    """The rows of these queries."""
    hits: Tensor
    """(B, depth) bool: whether the r-th nearest item has the label of the query."""
    relevant: Tensor
    """(B,) int64: number of gallery items with the label of the query, without excluded ones."""
    first_hit: Tensor
    """(B,) int64: rank of the first hit, from 1; if beyond `depth`, it is `depth + 1` or exact."""
    answers: Tensor
    """(B, depth) int64: positions in the gallery, the nearest first."""
    similarities: Tensor
    """(B, depth) similarities of the answers; -inf for excluded pairs, whose `answers` are arbitrary."""


class Ranking:
    """All queries against one gallery.

    Args:
        queries: (Q, D) with labels.
        gallery: (N, D) with labels; None: the queries; each query excludes rows with its id, or without
            ids its row.
        block_elements: similarities in one block; None: as many as suit the device.

    Raises:
        ValueError: ids or groups on one side only, rows of different length or type on the
            two sides, or embeddings that are not finite rows of length 1.
    """

    def __init__(
        self, queries: Items, gallery: Items | None = None, *, block_elements: int | None = None
    ) -> None:
        _require_items("queries", queries)
        on_cpu = queries.embeddings.device.type == "cpu"
        if block_elements is None:
            block_elements = BLOCK_ELEMENTS if on_cpu else GPU_BLOCK_ELEMENTS
        self._block_elements = checked_count("block_elements", block_elements)
        if gallery is None:
            rows = torch.arange(len(queries.labels), device=queries.labels.device)
            ids = rows if queries.ids is None else queries.ids
            queries = gallery = Items(queries.embeddings, queries.labels, ids, queries.groups)
        _require_items("gallery", gallery)
        check_one_space(queries.embeddings, gallery.embeddings)
        for name in ("ids", "groups"):
            if (getattr(queries, name) is None) != (getattr(gallery, name) is None):
                present, missing = (
                    ("gallery", "queries") if getattr(queries, name) is None else ("queries", "gallery")
                )
                raise ValueError(
                    f"{name} must be set for both queries and gallery, or for neither; got only {name} of "
                    f"the {present}. Pass {name} of the {missing} too."
                )
        for items in (queries, gallery):
            check_unit_rows(items.embeddings)
        self.queries, self.gallery = queries, gallery
        labels = self._same_label = _Matches(queries.labels, gallery.labels)
        self._query_labels, self._gallery_labels = labels.query_keys, labels.gallery_keys
        self.relevant = labels.counts.clone()
        self._excluded: list[_Matches] = []
        if queries.ids is not None and gallery.ids is not None:
            ids_ = _Matches(queries.ids, gallery.ids)
            self._excluded.append(ids_)
            self.relevant -= labels.joined(ids_).counts
        if queries.groups is not None and gallery.groups is not None:
            in_group = labels.joined(_Matches(queries.groups, gallery.groups))
            self.relevant -= in_group.counts
            for ids_ in self._excluded:  # a pair that is excluded for both reasons is subtracted once
                self.relevant += in_group.joined(ids_).counts
            self._excluded.append(in_group)

    def blocks(self, depth: int, *, every_first_hit: bool = False) -> Iterator[Ranked]:
        """The `depth` nearest items of every query, in blocks; memory: similarities and ranks of one block.

        Args:
            depth: number of answers to rank.
            every_first_hit: also compute the exact rank of first hits beyond `depth`.

        Raises:
            ValueError: a depth below 1.
        """
        depth = checked_count("depth", depth)
        size, depth = len(self.gallery.labels), min(depth, len(self.gallery.labels))
        block = max(self._block_elements // (size + _ELEMENTS_PER_RANK * depth), 1)
        for start in range(0, len(self.queries.labels), block):
            rows = slice(start, start + block)
            similarities = cosine_similarities(self.queries.embeddings[rows], self.gallery.embeddings)
            for excluded in self._excluded:
                similarities[excluded.pairs(rows)] = -torch.inf
            values, order = ranked(similarities, depth)
            hits = self._gallery_labels[order] == self._query_labels[rows, None]
            hits &= values > -torch.inf
            first_hit = torch.where(hits.any(1), hits.to(torch.uint8).argmax(1) + 1, depth + 1)
            if every_first_hit:
                late = (first_hit > depth) & (self.relevant[rows] > 0)
                if late.any():
                    first_hit[late] = self._counted_first_hits(similarities, rows, late)
            yield Ranked(rows, hits, self.relevant[rows], first_hit, order, values)

    def _counted_first_hits(self, similarities: Tensor, rows: slice, late: Tensor) -> Tensor:
        """Ranks of first hits beyond the depth, by counting the items before them instead of sorting."""
        queries, positives = self._same_label.pairs(rows)
        values = similarities[queries, positives]
        best = similarities.new_full((len(late),), -torch.inf).scatter_reduce(0, queries, values, "amax")
        size = similarities.shape[1]
        tied = torch.where(values == best[queries], positives, size)
        first = torch.full_like(queries, size)[:1].expand(len(late)).scatter_reduce(0, queries, tied, "amin")
        columns = torch.arange(size, device=positives.device)
        ranks = []
        elements = _COUNTED_ELEMENTS if similarities.device.type == "cpu" else self._block_elements
        for late_rows in torch.split(late.nonzero()[:, 0], max(elements // size, 1)):
            values, best_value = similarities[late_rows], best[late_rows, None]
            before = _count(values > best_value)
            equal = values == best_value
            if int(_count(equal).max()) > 1:  # ties are ordered by position
                before += _count(equal & (columns < first[late_rows, None]))
            ranks.append(before + 1)
        return torch.cat(ranks)


def _count(mask: Tensor) -> Tensor:
    """(rows,) int64 number of True values in each row; takes half the time of summing bool."""
    return mask.view(torch.int8).sum(1, dtype=torch.int32).long()


def _require_items(name: str, items: object) -> None:
    if not isinstance(items, Items):
        raise ValueError(f"{name} must be Items; got {type(items).__name__}. Pass Items(embeddings, labels).")


def check_one_space(queries: Tensor, gallery: Tensor) -> None:
    """Raise ValueError if queries and gallery differ in device, dimension or type."""
    check_one_device(queries=queries, gallery=gallery)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries and gallery must have vectors of the same length; got D = {queries.shape[1]} and "
            f"{gallery.shape[1]}. Embed both with one model."
        )
    if (queries.dtype == torch.float64) != (gallery.dtype == torch.float64):
        raise ValueError(
            f"queries and gallery must have the same type; got {queries.dtype} and {gallery.dtype}. Pass "
            "both .float() or both .double()."
        )


class _Matches:
    """The pairs of query and gallery item with equal keys, without comparing all pairs."""

    def __init__(self, query_keys: Tensor, gallery_keys: Tensor) -> None:
        both = torch.unique(torch.cat([query_keys, gallery_keys]), return_inverse=True)[1]
        self.query_keys, self.gallery_keys = both[: len(query_keys)], both[len(query_keys) :]
        ordered, self._order = self.gallery_keys.sort(stable=True)
        self._first = torch.searchsorted(ordered, self.query_keys)
        self.counts = torch.searchsorted(ordered, self.query_keys, right=True) - self._first

    def joined(self, other: "_Matches") -> "_Matches":
        """The pairs that match in both."""
        keys = torch.cat([other.query_keys, other.gallery_keys])
        num_keys = int(keys.max()) + 1 if len(keys) else 0
        return _Matches(
            self.query_keys * num_keys + other.query_keys, self.gallery_keys * num_keys + other.gallery_keys
        )

    def pairs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """(row within the block, position in the gallery) of every matching pair."""
        counts, first = self.counts[rows], self._first[rows]
        row_of_pair = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        before = (counts.cumsum(0) - counts)[row_of_pair]
        nth = torch.arange(len(row_of_pair), device=counts.device) - before
        return row_of_pair, self._order[first[row_of_pair] + nth]


def ranked(similarities: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The `depth` largest of each row, descending, ties by position; (rows, depth) values and columns."""
    num_columns = similarities.shape[1]
    count = min(depth + 1, num_columns)
    group_size = math.isqrt(num_columns // count)
    if num_columns >= _FEWEST_GROUPED_COLUMNS and group_size >= _SMALLEST_GROUP:
        values, order = topk_by_groups(similarities, count, group_size)
    else:
        values, order = similarities.topk(count, dim=1, sorted=False)
    # topk returns ties in any order: sort them by position, and sort rows completely if a tie crosses depth.
    order, by_position = order.sort(1)
    values, by_value = values.gather(1, by_position).sort(dim=1, descending=True, stable=True)
    order = order.gather(1, by_value)
    if values.shape[1] > depth:
        tied = (values[:, depth - 1] == values[:, depth]) & (values[:, depth] > -torch.inf)
        if tied.any():
            full = similarities[tied].argsort(dim=1, descending=True, stable=True)
            order[tied] = full[:, : order.shape[1]]
    return values[:, :depth], order[:, :depth]


def topk_by_groups(similarities: Tensor, count: int, group_size: int) -> tuple[Tensor, Tensor]:
    """`similarities.topk(count)` in unspecified order, several times faster for a small count.

    The columns are divided into groups. The `count` largest values are in the `count` groups with the largest
    maxima, or in the remaining columns, so only these are candidates: one pass for the maxima instead of a
    selection over all columns.
    """
    num_columns = similarities.shape[1]
    num_groups = num_columns // group_size
    num_grouped = num_groups * group_size
    grouped = similarities[:, :num_grouped].view(-1, group_size, num_groups)
    groups = grouped.amax(1).topk(count, dim=1, sorted=False).indices
    members = grouped.gather(2, groups[:, None, :].expand(-1, group_size, -1)).flatten(1)
    candidates = torch.cat([members, similarities[:, num_grouped:]], dim=1)
    values, selected = candidates.topk(count, dim=1, sorted=False)
    in_group = selected // count * num_groups + groups.gather(1, selected % count)
    remaining = selected - members.shape[1] + num_grouped
    return values, torch.where(selected < members.shape[1], in_group, remaining)

"""Filters and queries to measure the plans of an index on: true neighbours, and the lists that reach them.

Queries are rows of the index that no filter contains. Filters match a share of the rows that is independent
of the query (random), or the rows most similar to some row, with queries from among them (inside) and from
elsewhere (outside).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dml.retrieval.execution import are_first, matches_per_list, nearest_among
from dml.retrieval.lists import InvertedLists
from dml.retrieval.recall_table import Correlation, depths_of
from dml.retrieval.vectors import Vectors

K = 10
_QUERIES_PER_ANCHOR, _FEWEST_ANCHORS = 32, 2
_BLOCK_ROWS = 1 << 13


@dataclass(frozen=True)
class FilterCase:
    """Rows that match, and held-out queries."""

    selectivity: float
    correlation: Correlation
    rows: NDArray[np.int64]
    queries: NDArray[np.int64]


def draw_cases(
    vectors: Vectors,
    num_rows: int,
    num_queries: int,
    selectivities: tuple[float, ...],
    rng: np.random.Generator,
) -> Iterator[FilterCase]:
    """Filters of each selectivity and correlation, random and by the similarity to some rows.

    Args:
        vectors: of the index's rows.
        num_rows: of the index.
        num_queries: held-out queries of each selectivity and correlation.
        selectivities: matching rows / rows.
        rng: draws queries and filters.
    """
    held_out = np.sort(rng.choice(num_rows, min(num_queries, num_rows // 4), replace=False))
    others = np.setdiff1d(np.arange(num_rows), held_out, assume_unique=True)
    usable = [share for share in selectivities if share * num_rows >= 2 * K]
    for share in usable:
        size = min(int(share * num_rows), len(others))
        rows = others if share == 1.0 else np.sort(rng.choice(others, size, replace=False))
        yield FilterCase(share, "random", rows, held_out)
    num_anchors = max(num_queries // _QUERIES_PER_ANCHOR, _FEWEST_ANCHORS)
    each = max(num_queries // num_anchors, 1)
    for anchor in rng.choice(num_rows, num_anchors, replace=False):
        by_similarity = _by_similarity(vectors, num_rows, int(anchor))
        for share in usable:
            size = int(share * num_rows)
            if share == 1.0:
                continue
            inside = rng.choice(by_similarity[:size], min(each, size // 2), replace=False)
            outside = rng.choice(by_similarity[size:], min(each, num_rows - size), replace=False)
            rows = np.setdiff1d(by_similarity[:size], inside, assume_unique=True)
            rows.sort()
            yield FilterCase(share, "inside", rows, np.sort(inside))
            yield FilterCase(share, "outside", rows, np.sort(outside))


def _by_similarity(vectors: Vectors, num_rows: int, anchor: int) -> NDArray[np.int64]:
    """All rows, the most similar to one of them first."""
    vector = vectors.take(np.array([anchor]))[0]
    similarities = np.empty(num_rows, dtype=np.float32)
    for start in range(0, num_rows, _BLOCK_ROWS):
        block = np.arange(start, min(start + _BLOCK_ROWS, num_rows))
        similarities[block] = vectors.take(block) @ vector
    return np.argsort(-similarities, kind="stable")


@dataclass(frozen=True)
class GroundTruth:
    """For each query of a filter: its true neighbours, and what reaches them."""

    filter: FilterCase
    truth: NDArray[np.int64]
    """(Q, k)"""
    depths: NDArray[np.float64]
    """(Q,) see `depths_of`."""
    similarities: NDArray[np.float32]
    """(Q,) of the k-th item in the lists that are scanned first; -infinity: they have fewer than k."""
    margins: NDArray[np.float64]
    """(Q, k) the least with which the list of each neighbour is scanned; -infinity: it is one of the first,
    infinity: none."""

    def is_rare(self, rare: float, num_rows: int) -> NDArray[np.bool_]:
        """(Q,) whether matches are rare near the query."""
        return self.depths > rare * K * num_rows / len(self.filter.rows)


def find_ground_truth(
    lists: InvertedLists, vectors: Vectors, case: FilterCase, list_of_row: NDArray[np.int32]
) -> GroundTruth:
    """Compare the queries of a filter with all rows that match; `list_of_row` is (N,)."""
    queries = vectors.take(case.queries)
    truth = nearest_among(vectors, queries, case.rows, K)
    near = lists.near(queries, lists.num_lists)
    in_lists = matches_per_list(case.rows, list_of_row, lists.num_lists)[near.numbers]
    within = in_lists.cumsum(axis=1)
    first = are_first(in_lists, within, K)
    similarities = _kth_similarities(vectors, queries, case.rows, list_of_row, near.numbers, first)
    # An approximate quantizer may leave lists out: no margin reaches them.
    by_list = np.full((len(queries), lists.num_lists + 1), np.inf)
    least = np.where(first, -np.inf, similarities[:, None] - near.similarities)
    np.put_along_axis(by_list, near.numbers, least, axis=1)
    by_list[:, -1] = np.inf  # where list -1 was written
    return GroundTruth(
        filter=case,
        truth=truth,
        depths=depths_of(lists.sizes[near.numbers], in_lists, within, K),
        similarities=similarities,
        margins=np.take_along_axis(by_list, list_of_row[truth], axis=1),
    )


def _kth_similarities(
    vectors: Vectors,
    queries: NDArray[np.float32],
    rows: NDArray[np.int64],
    list_of_row: NDArray[np.int32],
    numbers: NDArray[np.int64],
    taken: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """(Q,) of the k-th of some rows in each query's taken lists; -infinity where there are fewer."""
    lists = list_of_row[rows]
    by_list = np.argsort(lists, kind="stable")
    ascending = lists[by_list]
    found = np.full(len(queries), -np.inf, dtype=np.float32)
    for query, vector in enumerate(queries):
        of_query = numbers[query, taken[query]]
        begins, ends = np.searchsorted(ascending, of_query), np.searchsorted(ascending, of_query, "right")
        slices = [by_list[begin:end] for begin, end in zip(begins, ends, strict=True)]
        near = rows[np.concatenate(slices)] if slices else rows[:0]
        if len(near) >= K:
            found[query] = np.partition(vectors.take(near) @ vector, -K)[-K]
    return found

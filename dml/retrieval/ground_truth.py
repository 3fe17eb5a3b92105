"""Filters and queries to measure the plans of an index on: true neighbours, and the lists that reach them.

Queries are rows of the index that no filter contains. Filters match a share of the rows that is independent
of the query (random), or the rows most similar to some row, with queries from among them (inside) and from
elsewhere (outside).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dml.retrieval.execution import Vectors, matches_per_list, nearest_among
from dml.retrieval.lists import InvertedLists
from dml.retrieval.plan import Correlation, Depths

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
    """For each query of a filter: its true neighbours, by how many lists each is reached, and its depth."""

    filter: FilterCase
    truth: NDArray[np.int64]
    """(Q, k)"""
    reached_by: NDArray[np.int64]
    """(Q, k)"""
    depths: Depths


def find_ground_truth(
    lists: InvertedLists, vectors: Vectors, case: FilterCase, list_of_row: NDArray[np.int32]
) -> GroundTruth:
    """Compare the queries of a filter with all rows that match; `list_of_row` is (N,)."""
    queries = vectors.take(case.queries)
    truth = nearest_among(vectors, queries, case.rows, K)
    numbers = lists.near(queries, lists.num_lists).numbers
    # An approximate quantizer may leave lists out: they are reached by more lists than there are.
    ranks = np.full((len(queries), lists.num_lists + 1), lists.num_lists, dtype=np.int64)
    np.put_along_axis(ranks, numbers, np.arange(lists.num_lists)[None, :], axis=1)
    ranks[:, -1] = lists.num_lists
    per_list = matches_per_list(case.rows, list_of_row, lists.num_lists)
    return GroundTruth(
        filter=case,
        truth=truth,
        reached_by=np.take_along_axis(ranks, list_of_row[truth], axis=1) + 1,
        depths=Depths.of(lists.sizes[numbers], per_list[numbers], K),
    )

"""A filtered search by an index: each query scans the lists it needs, or is left to exact comparison."""

from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dml.retrieval.attributes import Matches
from dml.retrieval.attributes.bits import are_set
from dml.retrieval.lists import InvertedLists, NearLists
from dml.retrieval.plan import Costs, Depths, Plan, RecallTable
from dml.retrieval.ties import Neighbors

LOOKED_AT = 2
"""Lists whose matches are counted / lists expected to be needed."""


class Vectors(Protocol):
    """The vectors of an index's rows."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, D) vectors of the rows."""

    def search_among(self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]) -> Neighbors:
        """(Q, k) the most similar among (n,) ascending rows, exactly."""


class FilteredLists:
    """Search under a filter by the inverted lists of an index.

    Args:
        lists: the inverted lists.
        vectors: the rows' vectors, to compare candidates in full where the lists keep codes.
        table: lists for the recall target.
        costs: cost model.
    """

    def __init__(self, lists: InvertedLists, vectors: Vectors, table: RecallTable, costs: Costs) -> None:
        self._lists, self._vectors, self._table, self._costs = lists, vectors, table, costs
        self._list_of_row = lists.list_of_rows(int(lists.sizes.sum()))
        self._per_list: WeakKeyDictionary[Matches, NDArray[np.int64]] = WeakKeyDictionary()

    def search(
        self, queries: NDArray[np.float32], k: int, matches: Matches, plan: Plan
    ) -> tuple[Neighbors, NDArray[np.bool_]]:
        """Find the k most similar matching rows, where the index reaches the recall target cheaply enough.

        How many lists a query needs, and what they cost, is known from the matches of each list before one is
        scanned. So a query that the lists do not suit costs little more than comparing it with all matches.

        Args:
            queries: (Q, D) float32.
            k: rows wanted.
            matches: the matching rows.
            plan: how many lists a query is expected to need, and what comparing with all matches costs.

        Returns:
            Similarities and rows, and (Q,) whether the query was answered. Where it was not, too few matches
            are near it, or its lists would cost more than comparing with all, or the selector was ignored.
        """
        assert plan.probes is not None
        assert plan.scan_us is not None
        near = self._lists.near(queries, min(LOOKED_AT * plan.probes, self._lists.num_lists))
        sizes, in_lists = self._lists.sizes[near.numbers], self._of_each_list(matches)[near.numbers]
        depths = Depths.of(sizes, in_lists, max(k, self._table.k))
        needed = self._table.lists_for(depths, count=plan.count, rows=plan.rows, k=k)
        needed[needed > sizes.shape[1]] = 0
        taken = (np.arange(sizes.shape[1]) < needed[:, None]) & (in_lists > 0)
        costs = self._costs.index(
            lists=taken.sum(axis=1), ids=(sizes * taken).sum(axis=1), matches=(in_lists * taken).sum(axis=1)
        )
        suits = (needed > 0) & (costs <= plan.scan_us)
        bitmap, candidates = matches.bitmap(), self._table.candidates
        taken &= suits[:, None]
        similarities, rows = scan(self._lists, self._vectors, near, taken, k, bitmap, candidates, queries)
        return (similarities, rows), suits & are_among(rows, bitmap).all(axis=1)

    def _of_each_list(self, matches: Matches) -> NDArray[np.int64]:
        """(num_lists + 1,) how many matches each list has; the last is 0, for list -1."""
        per_list = self._per_list.get(matches)
        if per_list is None:
            per_list = matches_per_list(matches.rows(), self._list_of_row, self._lists.num_lists)
            self._per_list[matches] = per_list
        return per_list


def are_among(rows: NDArray[np.int64], bitmap: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each row is there and has its bit; Faiss does not always honour selectors (its issue 5504)."""
    there = rows >= 0
    among: NDArray[np.bool_] = there & are_set(bitmap, np.where(there, rows, 0))
    return among


def scan(
    lists: InvertedLists,
    vectors: Vectors,
    near: NearLists,
    taken: NDArray[np.bool_],
    k: int,
    bitmap: NDArray[np.uint8],
    candidates: int,
    queries: NDArray[np.float32],
) -> Neighbors:
    """Scan lists; where they keep codes, find `candidates` rows per answer and compare these in full."""
    if candidates == 1:
        return lists.scan(near, taken, k, bitmap)
    similarities = np.full((len(taken), k), -np.inf, dtype=np.float32)
    rows = np.full((len(taken), k), -1, dtype=np.int64)
    for number, of_query in enumerate(lists.scan(near, taken, k * candidates, bitmap)[1]):
        few = np.sort(of_query[of_query >= 0])
        if len(few) >= k:
            found = vectors.search_among(queries[number : number + 1], k, few)
            similarities[number], rows[number] = found[0][0], found[1][0]
    return similarities, rows


def matches_per_list(
    rows: NDArray[np.int64], list_of_row: NDArray[np.int32], num_lists: int
) -> NDArray[np.int64]:
    """(num_lists + 1,) how many of the rows each list has; the last is 0, for list -1."""
    return np.bincount(list_of_row[rows], minlength=num_lists + 1)


def nearest_among(
    vectors: Vectors,
    queries: NDArray[np.float32],
    rows: NDArray[np.int64],
    k: int,
    *,
    block_rows: int = 1 << 13,
) -> NDArray[np.int64]:
    """(Q, k) the most similar rows by matrix products, in blocks: for many queries."""
    similarities = np.empty((len(queries), 0), dtype=np.float32)
    nearest = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(rows), block_rows):
        block = rows[start : start + block_rows]
        found = queries @ vectors.take(block).T
        places = np.argpartition(-found, min(k, len(block)) - 1, axis=1)[:, :k]
        similarities = np.hstack([similarities, np.take_along_axis(found, places, axis=1)])
        nearest = np.hstack([nearest, block[places]])
        best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        similarities = np.take_along_axis(similarities, best, axis=1)
        nearest = np.take_along_axis(nearest, best, axis=1)
    return nearest

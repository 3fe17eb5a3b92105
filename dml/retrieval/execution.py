"""A filtered search by an index: each query scans the lists it needs, or is left to exact comparison."""

from functools import lru_cache
from weakref import WeakKeyDictionary

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.retrieval.attributes import Matches
from dml.retrieval.attributes.bits import are_set
from dml.retrieval.lists import InvertedLists, NearLists
from dml.retrieval.plan import Plan
from dml.retrieval.query_costs import Costs
from dml.retrieval.recall_table import RecallTable, depths_of
from dml.retrieval.ties import Neighbors, by_similarity
from dml.retrieval.vectors import Vectors

_FIRST = 16
"""Matches in the lists that are scanned first / answers wanted."""
_KEPT_MARGINS = 1024


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
        self._margins_at = lru_cache(_KEPT_MARGINS)(table.margins_at)
        self._known: WeakKeyDictionary[Matches, _Chosen] = WeakKeyDictionary()

    def search(
        self, queries: NDArray[np.float32], k: int, matches: Matches, plan: Plan
    ) -> tuple[Neighbors, NDArray[np.bool_]]:
        """Find the k most similar matching rows, where the index reaches the recall target cheaply enough.

        A query first scans its nearest lists, and by its k-th similarity there it is decided which others it
        needs: those whose centroids are similar enough, see `RecallTable`. What lists cost is known from the
        matches of each before they are scanned: the first are if they cost less than comparing with all
        matches does, and the others if they do. So a query costs at most twice as much as that.

        Args:
            queries: (Q, D) float32.
            k: rows wanted.
            matches: the matching rows.
            plan: how many lists a query looks at, and what comparing with all matches costs.

        Returns:
            Similarities and rows, and (Q,) whether the query was answered. Where it was not, too few matches
            are near it, or its lists would cost more than comparing with all, or the selector was ignored.
        """
        assert plan.looked_at is not None
        assert plan.scan_us is not None
        number, chosen = max(k, self._table.k), self._chosen(matches)
        near = self._lists.near(queries, plan.looked_at)
        sizes, in_lists = self._lists.sizes[near.numbers], chosen.per_list[near.numbers]
        within, are_there, expected = in_lists.cumsum(axis=1), in_lists > 0, number * plan.rows / plan.count
        depths = depths_of(sizes, in_lists, within, number)
        margins = self._table.margins_for(depths, expected, self._margins_at(expected))
        first = are_first(in_lists, within, number) & are_there
        costs = chosen.costs_us[near.numbers]
        suits = ~np.isnan(margins) & (np.vecdot(costs, first) <= plan.scan_us - self._costs.index_us)
        found = self._scan(near, first & suits[:, None], number, chosen, queries)
        least = found[0][:, -1] - margins
        rest = (near.similarities >= least[:, None]) & are_there & ~first
        suits &= np.vecdot(costs, rest) <= plan.scan_us  # what the first took is spent either way
        if plan.looked_at < self._lists.num_lists:
            suits &= near.similarities[:, -1] < least  # else lists that were not looked at are needed
        rest &= suits[:, None]
        if rest.any():
            more = self._scan(near, rest, number, chosen, queries)
            found = by_similarity(np.hstack([found[0], more[0]]), np.hstack([found[1], more[1]]))
        similarities, rows = found[0][:, :k], found[1][:, :k]
        return (similarities, rows), suits & are_among(rows, chosen.bitmap).all(axis=1)

    def _scan(
        self,
        near: NearLists,
        taken: NDArray[np.bool_],
        k: int,
        chosen: "_Chosen",
        queries: NDArray[np.float32],
    ) -> Neighbors:
        parameters, candidates = chosen.parameters(taken.shape[1]), self._table.candidates
        return scan(self._lists, self._vectors, near, taken, k, parameters, candidates, queries)

    def _chosen(self, matches: Matches) -> "_Chosen":
        """Matches as the lists have them; made once."""
        chosen = self._known.get(matches)
        if chosen is None:
            per_list = matches_per_list(matches.rows(), self._list_of_row, self._lists.num_lists)
            costs = self._costs.lists(ids=self._lists.sizes, matches=per_list)
            chosen = self._known[matches] = _Chosen(self._lists, per_list, costs, matches.bitmap())
        return chosen


class _Chosen:
    """The matching rows of a filter, as inverted lists have them.

    Args:
        lists: all.
        per_list: (num_lists + 1,) how many matching rows each has; the last is 0, for list -1.
        costs_us: (num_lists + 1,) of scanning each.
        bitmap: of the matching rows.
    """

    def __init__(
        self,
        lists: InvertedLists,
        per_list: NDArray[np.int64],
        costs_us: NDArray[np.float64],
        bitmap: NDArray[np.uint8],
    ) -> None:
        self._lists, self.per_list, self.costs_us, self.bitmap = lists, per_list, costs_us, bitmap
        self._parameters: dict[int, faiss.SearchParametersIVF] = {}

    def parameters(self, probes: int) -> faiss.SearchParametersIVF:
        """Of a scan of so many lists a query; made once."""
        if probes not in self._parameters:
            self._parameters[probes] = self._lists.parameters(self.bitmap, probes)
        return self._parameters[probes]


def are_first(in_lists: NDArray[np.int64], within: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """(Q, P) which of each query's nearest lists are scanned first.

    Args:
        in_lists: (Q, P) matches in them.
        within: (Q, P) the sums of these up to each list.
        k: answers wanted.
    """
    first: NDArray[np.bool_] = within - in_lists < _FIRST * k
    return first


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
    parameters: faiss.SearchParametersIVF,
    candidates: int,
    queries: NDArray[np.float32],
) -> Neighbors:
    """Scan lists; where they keep codes, find `candidates` rows per answer and compare these in full."""
    if candidates == 1:
        return lists.scan(near, taken, k, parameters)
    similarities = np.full((len(taken), k), -np.inf, dtype=np.float32)
    rows = np.full((len(taken), k), -1, dtype=np.int64)
    for number, of_query in enumerate(lists.scan(near, taken, k * candidates, parameters)[1]):
        found = vectors.search_among(queries[number : number + 1], k, np.sort(of_query[of_query >= 0]))
        similarities[number, : found[0].shape[1]], rows[number, : found[1].shape[1]] = (
            found[0][0],
            found[1][0],
        )
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
        columns = np.argpartition(-found, min(k, len(block)) - 1, axis=1)[:, :k]
        similarities = np.hstack([similarities, np.take_along_axis(found, columns, axis=1)])
        nearest = np.hstack([nearest, block[columns]])
        best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        similarities = np.take_along_axis(similarities, best, axis=1)
        nearest = np.take_along_axis(nearest, best, axis=1)
    return nearest

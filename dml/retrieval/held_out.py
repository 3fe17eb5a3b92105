"""The queries by which an index's recall is measured: rows of the table, with their exact neighbours."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.retrieval.vectors import FlatVectors

K = 10
"""Neighbours by which recall is measured."""
_EQUAL = 1e-6  # similarities of copies differ by the rounding of float32
_COMPARED_QUERIES = 256
_UNLIKE_SHARE = 200
"""One of so many of the held-out queries is less similar to its nearest row than `least_similarity`."""
_FEWEST_QUERIES = 100  # of fewer that is no more than the least of them
_LARGEST_SHARE = 5
"""One of so many rows is held out, at most: an index of much fewer rows has another recall."""

Take = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""(n,) rows in, their (n, D) vectors out."""


@dataclass(frozen=True)
class HeldOut:
    """Queries that are rows of the table, with their exact neighbours; none is its own answer.

    Of rows that are copies of each other any is as good an answer as the others. So an answer counts if it is
    one of the exact neighbours, or as similar as the last of them.
    """

    rows: NDArray[np.int64]
    """(Q,)"""
    queries: NDArray[np.float32]
    """(Q, D)"""
    truth: NDArray[np.int64]
    """(Q, k) rows, the most similar first."""
    labels: NDArray[np.int64] | None = None
    """(N,) of the rows; None: there are none."""
    indexed: NDArray[np.int64] | None = None
    """(n,) rows by their position in the index, which the queries are not in; None: it holds every row."""
    take: Take | None = None
    """Of the table; None: no two rows are equal, so answers are not compared."""

    @classmethod
    def of(
        cls,
        rows: NDArray[np.int64],
        queries: NDArray[np.float32],
        nearest: NDArray[np.int64],
        labels: NDArray[np.int64] | None = None,
        *,
        take: Take | None = None,
    ) -> "HeldOut":
        """Queries that are in the index.

        Args:
            rows: (Q,) of the queries.
            queries: (Q, D).
            nearest: (Q, k + 1) rows by exact search, the query among them or not.
            labels: (N,) of the index's rows.
            take: of the index's rows; None: no two are equal.
        """
        return cls(rows, queries, without_itself(nearest, rows), labels, take=take)

    @property
    def wanted(self) -> int:
        """How many answers to search for: a query that is in the index finds itself, too."""
        return int(self.truth.shape[1]) + (self.indexed is None)

    def recalls(self, nearest: NDArray[np.int64]) -> NDArray[np.float64]:
        """(Q,) share of the exact neighbours in (Q, `wanted`) answers."""
        found = num_found(self.queries, self.truth, self._others(nearest), self.take)
        shares: NDArray[np.float64] = found / self.truth.shape[1]
        return shares

    def recall(self, nearest: NDArray[np.int64]) -> float:
        """Mean share of the exact neighbours in (Q, `wanted`) answers."""
        return float(self.recalls(nearest).mean())

    def mate_at_1(self, nearest: NDArray[np.int64]) -> float | None:
        """Share of the queries with a mate whose first answer has their label."""
        if self.labels is None:
            return None
        own, indexed = (
            self.labels[self.rows],
            self.labels if self.indexed is None else self.labels[self.indexed],
        )
        has_mate = np.bincount(indexed, minlength=own.max() + 1)[own] > (self.indexed is None)
        first = self._others(nearest)[:, 0]
        hits = (first >= 0) & (self.labels[first] == own)
        return float(hits[has_mate].mean()) if has_mate.any() else None

    def least_similarity(self) -> float | None:
        """Of a query to its nearest row: one of 200 queries like these is below it.

        None: there are fewer than 100, or nothing to take vectors from.
        """
        if self.take is None or len(self.queries) < _FEWEST_QUERIES:
            return None
        similarities = np.vecdot(self.queries, self.take(self.truth[:, 0]))
        num_below = len(self.queries) // _UNLIKE_SHARE
        return float(np.partition(similarities, num_below)[num_below])

    def _others(self, nearest: NDArray[np.int64]) -> NDArray[np.int64]:
        return without_itself(nearest, self.rows) if self.indexed is None else nearest


def without_itself(nearest: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(Q, k): the k best of k + 1 neighbours that are not the query."""
    others = np.argsort(nearest == rows[:, None], axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(nearest, others, axis=1)


def num_found(
    queries: NDArray[np.float32], truth: NDArray[np.int64], answers: NDArray[np.int64], take: Take | None
) -> NDArray[np.int64]:
    """(Q,) how many of each query's answers are right: an exact neighbour, or as similar as the last of them.

    Args:
        queries: (Q, D) float32.
        truth: (Q, k) rows, the most similar first.
        answers: (Q, n) rows; -1: there is none.
        take: of these rows; None: no two are equal.
    """
    found: NDArray[np.int64] = (truth[:, :, None] == answers[:, None]).any(axis=2).sum(axis=1)
    if take is None:
        return found
    missed = np.flatnonzero(found < truth.shape[1])
    for start in range(0, len(missed), _COMPARED_QUERIES):
        few = missed[start : start + _COMPARED_QUERIES]
        rows = np.hstack([truth[few, -1:], answers[few]])
        vectors = take(np.maximum(rows, 0).ravel()).reshape(*rows.shape, -1)
        similarities = np.einsum("qd,qkd->qk", queries[few], vectors)
        equal = (similarities[:, 1:] >= similarities[:, :1] - _EQUAL) & (rows[:, 1:] >= 0)
        found[few] = np.maximum(found[few], np.minimum(equal.sum(axis=1), truth.shape[1]))
    return found


def rows_held_out(num_rows: int, num_queries: int, *, fewest: int = 1) -> NDArray[np.int64]:
    """(Q,) random rows, ascending; until an index is tuned, it is not trained on them, and no graph has them.

    Rows of a graph are easier to find than queries: their own links lead to their neighbours. So efSearch by
    which rows are found with a recall of 0.95 gives 0.86 for queries, and centroids lie nearer to the rows
    that they were trained on (`tests/retrieval/test_held_out.py`).

    Args:
        num_rows: of the table.
        num_queries: that are wanted; few rows have fewer.
        fewest: of the other rows, that the index needs; one row is held out all the same.
    """
    number = min(num_queries, max(min(num_rows // _LARGEST_SHARE, num_rows - fewest), 1))
    return np.sort(np.random.default_rng(1).choice(num_rows, number, replace=False))


def hold_out(
    vectors: FlatVectors, items: pa.Table, rows: NDArray[np.int64], *, are_indexed: bool
) -> HeldOut | None:
    """Rows as queries, with their exact neighbours; None: there are no neighbours to find.

    Args:
        vectors: all N.
        items: all N.
        rows: (Q,) the queries.
        are_indexed: whether what is measured holds them, too: then a query's neighbours are among all rows
            but itself, else among those that are no queries.
    """
    k = min(K, vectors.rows - (1 if are_indexed else len(rows)))
    if k < 1:
        return None
    queries, labels = vectors.take(rows), _label_numbers(items)
    if are_indexed:
        nearest = vectors.search(queries, k + 1)[1]
        return HeldOut.of(rows, queries, nearest, labels, take=vectors.take)
    _, nearest = vectors.search(queries, min(k + len(rows), _LARGEST_SHARE * k + 20, vectors.rows))
    is_indexed = np.ones(vectors.rows, dtype=np.bool_)
    is_indexed[rows] = False
    first = np.argsort(~is_indexed[nearest], axis=1, kind="stable")[:, :k]
    truth = np.take_along_axis(nearest, first, axis=1)
    return HeldOut(rows, queries, truth, labels, np.flatnonzero(is_indexed), vectors.take)


def _label_numbers(items: pa.Table) -> NDArray[np.int64] | None:
    """(N,) a number for each label, another one for each missing; None: there are no labels."""
    if "label" not in items.column_names or items["label"].null_count == len(items):
        return None
    chunks = items["label"].dictionary_encode().chunks  # with one dictionary
    labels = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in chunks]).astype(np.int64)
    missing = labels < 0
    labels[missing] = labels.max() + 1 + np.arange(int(missing.sum()))
    return labels

"""What was enrolled since an index was built: vectors and items in memory, compared exactly while few.

A delta is a value: adding or removing makes another one. So a search that has begun is not disturbed, and
deltas that follow each other share the memory of their vectors. Many rows are in inverted lists, too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.retrieval.filters import Filter
from dml.retrieval.filters.columns import ItemColumns
from dml.retrieval.filters.matching import evaluate
from dml.retrieval.gallery.delta_lists import DeltaLists
from dml.retrieval.recall_table import EXACT, Recall
from dml.retrieval.ties import Neighbors

EXACT_ROWS = 20_000
"""Enrolled items that are compared exactly; more are in inverted lists."""
_FEWEST_ROWS = 256
_FEWEST_IN_LISTS = 2048  # rows that are added to the lists at a time; until then they are compared exactly
_CHUNK_ROWS = 512
_SIMILARITIES_AT_ONCE = 1 << 22


@dataclass
class _Buffer:
    """Vectors that grow; only the delta with the most rows may add to it."""

    vectors: NDArray[np.float32]
    used: int


class Delta:
    """Items with their vectors, in the order of their enrolment; can be shared between threads.

    Args:
        schema: of the items; every column may be missing.
        dim: D.
        recall: wanted of a search by inverted lists, (0, 1]; 1: there are none.
        exact_rows: up to so many rows that match are compared exactly.
    """

    def __init__(
        self, schema: pa.Schema, dim: int, *, recall: float = 1.0, exact_rows: int = EXACT_ROWS
    ) -> None:
        self._schema, self._recall, self._exact_rows = schema, recall, exact_rows
        self._lists: DeltaLists | None = None
        self._buffer, self.num_rows = _Buffer(np.empty((_FEWEST_ROWS, dim), np.float32), 0), 0
        self._items: list[dict[str, Any]] = []
        self._row_of: dict[str, int] = {}
        self._chunks: dict[int, pa.Table] = {}

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(N, D)."""
        return self._buffer.vectors[: self.num_rows]

    @property
    def ids(self) -> list[str]:
        """Of the items, in order."""
        return [item["id"] for item in self._items[: self.num_rows]]

    def item(self, id_: str) -> dict[str, Any] | None:
        """The columns of an item; None: it is not here."""
        row = self._row_of.get(id_)
        return None if row is None or row >= self.num_rows else self._items[row]

    def vector(self, id_: str) -> NDArray[np.float32] | None:
        """(D,) of an item; None: it is not here."""
        row = self._row_of.get(id_)
        return None if row is None or row >= self.num_rows else self.vectors[row]

    def item_at(self, row: int) -> dict[str, Any]:
        """The columns of a row."""
        return self._items[row]

    def empty(self) -> "Delta":
        """A delta without items, otherwise alike."""
        return Delta(self._schema, self.vectors.shape[1], recall=self._recall, exact_rows=self._exact_rows)

    def with_items(self, items: Sequence[dict[str, Any]], vectors: NDArray[np.float32]) -> "Delta":
        """A delta with more items at its end, whose ids are new to it."""
        if not items:
            return self
        grown = self._with_items(items, vectors)
        grown._lists = grown._lists_after(self._lists)
        return grown

    def _lists_after(self, former: DeltaLists | None) -> DeltaLists | None:
        """Inverted lists, where there are enough rows; those of a former delta while it had half as many."""
        if self._recall == 1 or self.num_rows <= self._exact_rows:
            return None
        if former is None or self.num_rows >= 2 * former.num_trained:
            return DeltaLists.made_of(self.vectors, recall=self._recall)
        if self.num_rows < former.num_rows + _FEWEST_IN_LISTS:
            return former
        return former.with_rows(self.vectors[former.num_rows :])

    def _with_items(self, items: Sequence[dict[str, Any]], vectors: NDArray[np.float32]) -> "Delta":
        grown = object.__new__(Delta)
        grown._schema, grown.num_rows = self._schema, self.num_rows + len(items)
        grown._recall, grown._exact_rows, grown._lists = self._recall, self._exact_rows, None
        if self._buffer.used == self.num_rows:  # this is the latest: the others never read what is added
            grown._buffer = self._buffer
            if grown.num_rows > len(self._buffer.vectors):
                size = max(grown.num_rows, 2 * len(self._buffer.vectors))
                grown._buffer = _Buffer(np.empty((size, vectors.shape[1]), np.float32), 0)
                grown._buffer.vectors[: self.num_rows] = self.vectors
            grown._items, grown._row_of, grown._chunks = self._items, self._row_of, self._chunks
        else:
            size = max(grown.num_rows, _FEWEST_ROWS)
            grown._buffer = _Buffer(np.empty((size, vectors.shape[1]), np.float32), 0)
            grown._buffer.vectors[: self.num_rows] = self.vectors
            grown._items = self._items[: self.num_rows]
            grown._row_of = {item["id"]: row for row, item in enumerate(grown._items)}
            grown._chunks = {}
        grown._buffer.vectors[self.num_rows : grown.num_rows] = vectors
        grown._buffer.used = grown.num_rows
        for item in items:
            grown._row_of[item["id"]] = len(grown._items)
            grown._items.append(item)
        return grown

    def without(self, ids: Iterable[str]) -> "Delta":
        """A delta without some items, in memory of its own: nothing of them is left in it."""
        rows = {row for id_ in ids if (row := self._row_of.get(id_)) is not None and row < self.num_rows}
        if not rows:
            return self
        is_kept = np.ones(self.num_rows, np.bool_)
        is_kept[list(rows)] = False
        kept = np.flatnonzero(is_kept)
        empty = self.empty()
        if not len(kept):
            return empty
        left = empty._with_items([self._items[row] for row in kept], self.vectors[kept])
        if self._lists is not None and left.num_rows > self._exact_rows:
            left._lists = self._lists.without(is_kept[: self._lists.num_rows])
        return left

    @property
    def num_bytes_of_lists(self) -> int:
        """Memory of the inverted lists."""
        return 0 if self._lists is None else self._lists.num_bytes

    @cached_property
    def table(self) -> pa.Table:
        """The items."""
        chunks = []
        for start in range(0, self.num_rows, _CHUNK_ROWS):
            is_whole = start + _CHUNK_ROWS <= self.num_rows
            chunk = self._chunks.get(start) if is_whole else None
            if chunk is None:
                rows = self._items[start : min(start + _CHUNK_ROWS, self.num_rows)]
                chunk = pa.Table.from_pylist(rows, self._schema)
                if is_whole:
                    self._chunks[start] = chunk
            chunks.append(chunk)
        return pa.concat_tables(chunks) if chunks else self._schema.empty_table()

    @cached_property
    def columns(self) -> ItemColumns:
        """The items' columns, for filters."""
        return ItemColumns(self.table)

    @cached_property
    def _every(self) -> NDArray[np.int64]:
        return np.arange(self.num_rows)

    def rows_of(self, filter: Filter | None) -> NDArray[np.int64]:
        """(n,) the rows that satisfy a checked filter, ascending; None: all."""
        return self._every if filter is None else np.flatnonzero(evaluate(filter, self.columns))

    def nearest(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]
    ) -> tuple[Neighbors, Recall]:
        """As `search`, with its recall; of many rows only those in a query's nearest lists are compared.

        Lists are taken until they have k rows, so there are never fewer answers.
        """
        lists = self._lists
        if lists is None or len(rows) <= max(self._exact_rows, k) or not lists.pays(k):
            return self.search(queries, k, rows), EXACT
        similarities, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        listed, others = np.split(rows, [np.searchsorted(rows, lists.num_rows)])
        matching = None if len(listed) == lists.num_rows else listed
        for number, candidates in enumerate(lists.candidates(queries, k, matching)):
            query, among = queries[number : number + 1], np.concatenate([candidates, others])
            (similarities[number],), (found[number],) = self.search(query, k, among)
        return (similarities, found), lists.recall

    def search(self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]) -> Neighbors:
        """The k most similar of some rows, exactly; equal similarities rank by row.

        A similarity depends on the query and the row alone, as in `FlatVectors.search_among`.

        Args:
            queries: (Q, D) float32.
            k: how many.
            rows: (n,) int64, ascending.

        Returns:
            (Q, min(k, n)) similarities, descending, and rows.
        """
        k = min(k, len(rows))
        shape = len(queries), k
        similarities, found = np.empty(shape, np.float32), np.empty(shape, np.int64)
        if not k:
            return similarities, found
        at_once = max(_SIMILARITIES_AT_ONCE // len(rows), 1)
        for start in range(0, len(queries), at_once):
            block = np.ascontiguousarray(queries[start : start + at_once])
            every = _inner_products(block, self.vectors, rows)
            best = _first_k(every, k)
            similarities[start : start + at_once] = np.take_along_axis(every, best, axis=1)
            found[start : start + at_once] = rows[best]
        return similarities, found


def _inner_products(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(Q, n) by Faiss' own kernel, so that a vector is as similar in a delta as in an index."""
    products = np.empty((len(queries), len(rows)), np.float32)
    numbers = np.ascontiguousarray(np.broadcast_to(rows, products.shape))
    pointer = faiss.swig_ptr
    faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
        pointer(products),
        pointer(queries),
        pointer(vectors),
        pointer(numbers),
        queries.shape[1],
        len(queries),
        len(rows),
    )
    return products


def _first_k(similarities: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """(Q, k) the columns of the largest, descending, of equals the first."""
    if k < similarities.shape[1]:
        # All that are at least as large as the k-th largest, so that of equals the first can be chosen.
        limits = np.partition(similarities, -k, axis=1)[:, -k]
    else:
        limits = similarities.min(axis=1)
    columns = np.empty((len(similarities), k), np.int64)
    for number, (of_query, limit) in enumerate(zip(similarities, limits, strict=True)):
        few = np.flatnonzero(of_query >= limit)
        columns[number] = few[np.argsort(-of_query[few], kind="stable")[:k]]
    return columns

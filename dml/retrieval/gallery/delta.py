"""What was enrolled since an index was built: vectors and items in memory, compared exactly.

A delta is a value: adding or removing makes another one. So a search that has begun is not disturbed, and
deltas that follow each other share the memory of their vectors.
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
from dml.retrieval.ties import Neighbors

_FEWEST_ROWS = 256
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
    """

    def __init__(self, schema: pa.Schema, dim: int) -> None:
        self._schema = schema
        self._buffer, self.num_rows = _Buffer(np.empty((_FEWEST_ROWS, dim), np.float32), 0), 0
        self._items: list[dict[str, Any]] = []
        self._row_of: dict[str, int] = {}
        self._chunks: dict[int, pa.Table] = {}

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(N, D)."""
        return self._buffer.vectors[: self.num_rows]

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

    def with_items(self, items: Sequence[dict[str, Any]], vectors: NDArray[np.float32]) -> "Delta":
        """A delta with more items at its end, whose ids are new to it."""
        if not items:
            return self
        grown = object.__new__(Delta)
        grown._schema, grown.num_rows = self._schema, self.num_rows + len(items)
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
        kept = np.array([row for row in range(self.num_rows) if row not in rows], np.int64)
        return Delta(self._schema, self.vectors.shape[1]).with_items(
            [self._items[row] for row in kept], self.vectors[kept]
        )

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
    """(Q, k) the places of the largest, descending, of equals the first."""
    if k < similarities.shape[1]:
        # All that are at least as large as the k-th largest, so that of equals the first can be chosen.
        limits = np.partition(similarities, -k, axis=1)[:, -k]
    else:
        limits = similarities.min(axis=1)
    places = np.empty((len(similarities), k), np.int64)
    for number, (of_query, limit) in enumerate(zip(similarities, limits, strict=True)):
        few = np.flatnonzero(of_query >= limit)
        places[number] = few[np.argsort(-of_query[few], kind="stable")[:k]]
    return places

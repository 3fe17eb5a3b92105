"""Flat vectors of an index in one Faiss file, memory-mapped: rows in, vectors or exact similarities out.

The file is that of a `faiss.IndexFlatIP`, or with half precision of an fp16 scalar quantizer, so plain Faiss
reads it. It is written in blocks, and never held whole.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.retrieval.ties import Neighbors, by_similarity

VectorType = Literal["float32", "float16"]

_EMPTY: dict[VectorType, Callable[[int], faiss.Index]] = {
    "float32": faiss.IndexFlatIP,
    "float16": lambda dim: faiss.IndexScalarQuantizer(
        dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    ),
}
_ROWS_AT = slice(8, 16)  # of a Faiss file: magic, dimension, number of rows
_SIZE_AT = slice(-8, None)  # of the file of an empty index: the length of the array of vectors, which follows
_BLOCK_BYTES = 1 << 24
# From 20 queries Faiss computes a matrix product instead, whose last bits depend on the size of the batch.
_QUERIES_AT_ONCE = 16
_LONG_RANGE = 1 << 13  # rows; of 20,000 a range takes 520 us where a list takes 630, of 2,000 34 us for 22


def write_vectors(
    write: Callable[[bytes], object],
    blocks: Iterator[NDArray[np.float32]],
    *,
    rows: int,
    dim: int,
    dtype: VectorType = "float32",
) -> None:
    """Write a file of flat vectors block by block.

    Args:
        write: takes the file's bytes, piece by piece.
        blocks: (n, D) float32 each, N rows in all.
        rows: N.
        dim: D.
        dtype: float32, or float16 for half the size: similarities are then wrong by up to 0.001.

    Raises:
        ValueError: other than N rows.
    """
    header = bytearray(faiss.serialize_index(_EMPTY[dtype](dim)).tobytes())
    header[_ROWS_AT] = np.int64(rows).tobytes()
    # Faiss counts the floats of float32 vectors, and the bytes of others.
    header[_SIZE_AT] = np.uint64(rows * dim * (1 if dtype == "float32" else 2)).tobytes()
    write(bytes(header))
    written = 0
    for block in blocks:
        write(np.ascontiguousarray(block, dtype=dtype).tobytes())
        written += len(block)
    if written != rows:
        raise ValueError(f"blocks must have {rows} rows in all; got {written}.")


def is_flat(index: faiss.Index) -> bool:
    """Whether an index is itself flat vectors for inner products, in a type that `FlatVectors` reads."""
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return False
    if type(index) is faiss.IndexScalarQuantizer:
        return bool(index.sq.qtype == faiss.ScalarQuantizer.QT_fp16)
    return isinstance(index, faiss.IndexFlat)


def nearest(index: faiss.Index, queries: NDArray[np.float32], k: int) -> Neighbors:
    """What `index.search(queries, k)` returns, without its checks and conversions: 1.8 us of a query less.

    Args:
        index: any.
        queries: (Q, D) float32 of its dimension, C-contiguous.
        k: 1 or more.
    """
    shape = len(queries), k
    similarities, rows = np.empty(shape, np.float32), np.empty(shape, np.int64)
    index.search_c(  # type: ignore[attr-defined]
        len(queries),
        faiss.swig_ptr(queries),
        k,
        faiss.swig_ptr(similarities),
        faiss.swig_ptr(rows),
    )
    return similarities, rows


class Vectors(Protocol):
    """The vectors of an index's rows: `FlatVectors`, or some in memory."""

    @property
    def rows(self) -> int:
        """N."""

    @property
    def dim(self) -> int:
        """D."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, D) vectors of the rows."""

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All vectors in order."""

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbors:
        """(Q, k) the most similar of all rows, exactly."""

    def search_among(self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]) -> Neighbors:
        """(Q, k) the most similar among (n,) ascending rows, exactly."""


class FlatVectors:
    """The vectors of an index by row number, memory-mapped; can be shared between threads.

    Args:
        path: a file that `write_vectors` wrote, or Faiss of a flat index.
        index: what `faiss.read_index` made of the file, if it was read already.
        block_bytes: memory of a block of vectors.

    Raises:
        RuntimeError: Faiss cannot read the file.
        ValueError: it is the file of an index that is not flat.
    """

    def __init__(
        self, path: str, index: faiss.Index | None = None, *, block_bytes: int = _BLOCK_BYTES
    ) -> None:
        self.path, self.block_bytes = path, block_bytes
        self.index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC) if index is None else index
        if not is_flat(self.index):
            raise ValueError(f"A file of flat vectors must be a flat Faiss index; {path} is another.")
        self.rows, self.dim = int(self.index.ntotal), int(self.index.d)
        self.dtype: VectorType = "float32" if isinstance(self.index, faiss.IndexFlat) else "float16"
        self._row_bytes = int(self.index.sa_code_size())
        self._start = os.path.getsize(path) - self.rows * self._row_bytes
        self._halves = None
        if self.dtype == "float16":
            shape = self.rows, self._row_bytes
            self._halves = np.memmap(path, np.uint8, "r", offset=self._start, shape=shape)

    @property
    def block_rows(self) -> int:
        """How many rows are `block_bytes` of float32."""
        return max(self.block_bytes // (4 * self.dim), 1)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, D) the vectors of the rows (n,)."""
        self._refuse_rows_outside(rows)
        if self._halves is not None:
            return self._halves[rows].view(np.float16).astype(np.float32)
        taken: NDArray[np.float32] = self.index.reconstruct_batch(np.ascontiguousarray(rows, dtype=np.int64))
        return taken

    def blocks(self, block_rows: int | None = None) -> Iterator[NDArray[np.float32]]:
        """All vectors in order, (n, D) each; read, not mapped: memory is that of two blocks.

        Args:
            block_rows: n of each block but the last; None: `block_rows` of this class.
        """
        rows = block_rows or self.block_rows
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._start)
            for start in range(0, self.rows, rows):
                count = min(rows, self.rows - start) * self.dim
                yield (
                    np.fromfile(file, self.dtype, count).reshape(-1, self.dim).astype(np.float32, copy=False)
                )

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbors:
        """The k most similar of all rows, exactly; for many queries at once. Memory: two blocks.

        Args:
            queries: (Q, D) float32.
            k: how many.

        Returns:
            (Q, min(k, N)) similarities, descending, and rows.
        """
        best = _Best(len(queries), k)
        start = 0
        for block in self.blocks():
            similarities, rows = faiss.knn(
                queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
            )
            best.add(similarities, rows + start)
            start += len(block)
        return best.similarities, best.rows

    def subset(self, rows: NDArray[np.int64]) -> "Subset":
        """Some rows, to be compared with several queries, one after the other.

        Args:
            rows: (n,) int64, ascending.
        """
        return Subset(self, rows)

    def search_among(self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]) -> Neighbors:
        """The k most similar of some rows, exactly: `Subset.search`."""
        return Subset(self, rows).search(queries, k)

    def _refuse_rows_outside(self, rows: NDArray[np.int64]) -> None:
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.rows):
            raise ValueError(f"rows must be in [0, {self.rows}); got {rows.min()} to {rows.max()}.")


class Subset:
    """Some rows of flat vectors, compared with every query; can be shared between threads.

    `is_range`: they are a long range, which Faiss reads one after the other, in half of the time.

    Args:
        vectors: of all rows.
        rows: (n,) int64, ascending.

    Raises:
        ValueError: a row that is not there.
    """

    def __init__(self, vectors: FlatVectors, rows: NDArray[np.int64]) -> None:
        vectors._refuse_rows_outside(rows[[0, -1]] if len(rows) else rows)  # they ascend
        self._vectors, self.rows = vectors, np.ascontiguousarray(rows, dtype=np.int64)
        self.is_range = len(rows) >= _LONG_RANGE and int(rows[-1] - rows[0]) == len(rows) - 1
        # Both choose a kernel of `IndexFlat` that tests no bit and copies no vector: 67 us for 2,000 rows of
        # 128 dimensions where reading them back takes 229. Elsewhere an array of rows is quadratic.
        self._parameters = None
        if vectors.dtype == "float32":
            selector = (
                faiss.IDSelectorRange(int(rows[0]), int(rows[-1]) + 1)
                if self.is_range
                else faiss.IDSelectorArray(self.rows)
            )
            self._parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbors:
        """The k most similar rows, exactly.

        A similarity depends on the query and the row alone, not on what else is in the batch.

        Args:
            queries: (Q, D) float32.
            k: how many.

        Returns:
            (Q, min(k, n)) similarities, descending, and rows; equal similarities rank by row.
        """
        queries, k = np.ascontiguousarray(queries), min(k, len(self.rows))
        if not k or not len(queries):
            shape = len(queries), k
            return np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int64)
        search = self._search_halves if self._parameters is None else self._search_floats
        return by_similarity(*search(queries, k))

    def _search_floats(self, queries: NDArray[np.float32], k: int) -> Neighbors:
        index, parameters = self._vectors.index, self._parameters
        if not self.is_range or len(queries) <= _QUERIES_AT_ONCE:
            found: Neighbors = index.search(queries, k, params=parameters)
            return found
        return _joined(index.search(few, k, params=parameters) for few in _batches(queries))

    def _search_halves(self, queries: NDArray[np.float32], k: int) -> Neighbors:
        best = _Best(len(queries), k)
        for start in range(0, len(self.rows), self._vectors.block_rows):
            numbers = self.rows[start : start + self._vectors.block_rows]
            block, metric = self._vectors.take(numbers), faiss.METRIC_INNER_PRODUCT
            found = (faiss.knn(few, block, min(k, len(block)), metric=metric) for few in _batches(queries))
            similarities, columns = _joined(found)
            best.add(similarities, numbers[columns])
        return best.similarities, best.rows


def _batches(queries: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        yield queries[start : start + _QUERIES_AT_ONCE]


def _joined(parts: Iterable[Neighbors]) -> Neighbors:
    similarities, rows = zip(*parts, strict=True)
    return np.concatenate(similarities), np.concatenate(rows)


class _Best:
    """The k best of each query over several blocks."""

    def __init__(self, num_queries: int, k: int) -> None:
        self._k = k
        self.similarities = np.empty((num_queries, 0), dtype=np.float32)
        self.rows = np.empty((num_queries, 0), dtype=np.int64)

    def add(self, similarities: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        similarities, rows = by_similarity(
            np.hstack([self.similarities, similarities]), np.hstack([self.rows, rows])
        )
        self.similarities, self.rows = similarities[:, : self._k], rows[:, : self._k]

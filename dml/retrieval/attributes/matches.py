"""The rows that satisfy a filter: their exact number first, and rows or bitmap when they are asked for."""

from collections.abc import Callable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from dml.retrieval.attributes.bits import Bitmap, are_set, bitmap_of, count_of, rows_of

Test = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""(n,) ascending rows in, (n,) whether they match out."""


class Matches:
    """The rows that match; can be shared between threads. Its arrays must not be changed.

    Args:
        count: how many match.
        num_rows: of all items.
        rows: makes the matching rows, in any order; None: they are those of the bitmap.
        bitmap: makes the bitmap; None: it is that of the rows.
        test: whether rows match, where that is faster than making the bitmap for it.
    """

    def __init__(
        self,
        count: int,
        num_rows: int,
        *,
        rows: Callable[[], NDArray[np.integer]] | None = None,
        bitmap: Callable[[], Bitmap] | None = None,
        test: Test | None = None,
    ) -> None:
        self.count, self.num_rows = count, num_rows
        self._make_rows, self._make_bitmap, self._test = rows, bitmap, test
        self._rows: NDArray[np.int64] | None = None
        self._bitmap: Bitmap | None = None
        self._lock = Lock()

    @classmethod
    def of_rows(cls, rows: NDArray[np.integer], num_rows: int) -> "Matches":
        """Of rows in any order, none twice."""
        return cls(len(rows), num_rows, rows=lambda: rows)

    @classmethod
    def of_bitmap(cls, bitmap: Bitmap, num_rows: int) -> "Matches":
        """Of a bitmap, whose rows are counted."""
        return cls(count_of(bitmap), num_rows, bitmap=lambda: bitmap)

    @property
    def size_bytes(self) -> int:
        """Of what was made so far."""
        return sum(made.nbytes for made in (self._rows, self._bitmap) if made is not None)

    def rows(self) -> NDArray[np.int64]:
        """(n,) ascending."""
        with self._lock:
            if self._rows is None:
                if self._make_rows is None:
                    self._rows = rows_of(self._bits(), self.num_rows)
                else:
                    self._rows = np.sort(self._make_rows()).astype(np.int64, copy=False)
            return self._rows

    def bitmap(self) -> Bitmap:
        """One bit a row, the lowest bit of a byte first."""
        with self._lock:
            return self._bits()

    def among(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether each of these ascending rows matches."""
        if self._test is not None and self._bitmap is None:
            return self._test(rows)
        return are_set(self.bitmap(), rows)

    def _bits(self) -> Bitmap:
        if self._bitmap is None:
            if self._make_bitmap is not None:
                self._bitmap = self._make_bitmap()
            else:
                assert self._make_rows is not None
                rows = self._rows if self._rows is not None else self._make_rows()
                self._bitmap = bitmap_of(rows, self.num_rows)
        return self._bitmap

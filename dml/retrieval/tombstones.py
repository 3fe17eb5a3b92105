"""Rows of an index whose items were forgotten or replaced since it was built: no answer is one of them."""

from functools import cached_property
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dml.retrieval.attributes import Matches
from dml.retrieval.attributes.bits import Bitmap, are_set, bitmap_of, inverted

_FEW = 32  # matches are left as rows if they are at most 1/32 of all


class Tombstones:
    """Deleted rows; can be shared between threads.

    Args:
        rows: (n,) int64, none twice.
        num_rows: of the index.

    Example:
        >>> Tombstones(np.array([1, 3]), num_rows=5).live.rows()
        array([0, 2, 4])
    """

    def __init__(self, rows: NDArray[np.int64], num_rows: int) -> None:
        self.rows, self.num_rows = np.sort(rows), num_rows
        self._without: WeakKeyDictionary[Matches, Matches] = WeakKeyDictionary()
        self._parts: dict[tuple[int, int], Tombstones] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[type["Tombstones"], tuple[NDArray[np.int64], int]]:
        return Tombstones, (self.rows, self.num_rows)

    @cached_property
    def _bitmap(self) -> Bitmap:
        return bitmap_of(self.rows, self.num_rows)

    @cached_property
    def live(self) -> Matches:
        """All other rows."""
        return Matches(
            self.num_rows - len(self),
            self.num_rows,
            bitmap=lambda: inverted(self._bitmap, self.num_rows),
            test=lambda rows: ~self.among(rows),
        )

    def among(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row is deleted."""
        return are_set(self._bitmap, rows)

    def without(self, matches: Matches) -> Matches:
        """The matching rows that are live; the same object for the same matches, as caches want it."""
        with self._lock:
            known = self._without.get(matches)
        if known is not None:
            return known
        if matches.count * _FEW <= self.num_rows:
            rows = matches.rows()
            left = Matches.of_rows(rows[~self.among(rows)], self.num_rows)
        else:
            left = Matches.of_bitmap(matches.bitmap() & self.live.bitmap(), self.num_rows)
        with self._lock:
            return self._without.setdefault(matches, left)

    def part(self, first: int, last: int) -> "Tombstones":
        """Those among the rows from `first` to before `last`, numbered from 0."""
        with self._lock:
            if (first, last) not in self._parts:
                low, high = np.searchsorted(self.rows, [first, last])
                self._parts[first, last] = Tombstones(self.rows[low:high] - first, last - first)
            return self._parts[first, last]

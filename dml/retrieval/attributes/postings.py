"""Sorted distinct values of a column, and the rows of each: bitmaps of few values, lists of rows of many.

Rows of a value ascend, and values ascend, so the rows of a range of values are one slice. For wide slices
there are bitmaps of the first 1/32, 2/32, ... of all rows by value: a range is the difference of the two that
are nearest to its ends, and the rows between these and its ends are flipped, instead of setting each bit.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.retrieval.attributes.bits import Bitmap, bitmap_of, flip, num_bytes
from dml.retrieval.attributes.matches import Matches, Test

MOST_BITMAPS = 32  # then they take no more room than lists of rows, of 4 bytes each
_PARTS = 32
_WIDE = 64  # a slice of more than 1/64 of all rows


class Postings:
    """The rows of each value of a column.

    Args:
        arrays: `offsets` (V + 1,), and `bitmaps` (V, bytes), or `rows` (M,) and perhaps `prefixes`
            (33, bytes), the bitmaps of parts.
        num_rows: N.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], num_rows: int) -> None:
        self.num_rows = num_rows
        self.offsets: NDArray[np.int64] = arrays["offsets"]
        self._rows = arrays.get("rows")
        width = num_bytes(num_rows)
        self._bitmaps = arrays["bitmaps"].reshape(-1, width) if "bitmaps" in arrays else None
        self._prefixes = arrays["prefixes"].reshape(-1, width) if "prefixes" in arrays else None

    def of_range(self, first: int, last: int, *, test: Test | None = None) -> Matches:
        """The rows of the values number first to last, this one excluded."""
        last = max(first, last)
        begin, end = int(self.offsets[first]), int(self.offsets[last])
        if self._bitmaps is not None:
            bitmaps = self._bitmaps[first:last]
            return Matches(end - begin, self.num_rows, bitmap=lambda: _union(bitmaps, self.num_rows))
        rows = self._rows
        assert rows is not None
        return Matches(
            end - begin,
            self.num_rows,
            rows=lambda: rows[begin:end],
            bitmap=lambda: self._bitmap(rows, begin, end),
            test=test,
        )

    def of(self, numbers: list[int], *, test: Test | None = None) -> Matches:
        """The rows of the values of these numbers, each named once."""
        if len(numbers) == 1:
            return self.of_range(numbers[0], numbers[0] + 1, test=test)
        count = int(sum(self.offsets[number + 1] - self.offsets[number] for number in numbers))
        if self._bitmaps is not None:
            bitmaps = [self._bitmaps[number] for number in numbers]
            return Matches(count, self.num_rows, bitmap=lambda: _union(bitmaps, self.num_rows))
        rows = self._rows
        assert rows is not None
        slices = [rows[self.offsets[number] : self.offsets[number + 1]] for number in numbers]
        return Matches(
            count,
            self.num_rows,
            rows=lambda: np.concatenate(slices) if slices else rows[:0].copy(),
            test=test,
        )

    def _bitmap(self, rows: NDArray[np.integer], begin: int, end: int) -> Bitmap:
        if self._prefixes is None or (end - begin) * _WIDE < self.num_rows:
            return bitmap_of(rows[begin:end], self.num_rows)
        starts = part_starts(len(rows))
        first, last = np.abs(starts - begin).argmin(), np.abs(starts - end).argmin()
        bits: Bitmap = self._prefixes[last] ^ self._prefixes[first]
        for place, start in ((begin, starts[first]), (end, starts[last])):
            flip(bits, rows[min(place, start) : max(place, start)])
        return bits


def part_starts(count: int) -> NDArray[np.int64]:
    """(33,) where the parts of so many rows begin, and the end."""
    return np.arange(_PARTS + 1) * count // _PARTS


def _union(bitmaps: Sequence[Bitmap] | NDArray[np.uint8], num_rows: int) -> Bitmap:
    if len(bitmaps) == 1:
        one: Bitmap = bitmaps[0]
        return one
    union = np.zeros(num_bytes(num_rows), dtype=np.uint8)
    for bitmap in bitmaps:
        union |= bitmap
    return union


def posting_arrays(
    offsets: NDArray[np.int64], by_value: NDArray[np.integer], num_rows: int, *, ordered: bool
) -> dict[str, pa.Array]:
    """The arrays of `Postings`, of rows sorted by value."""
    arrays = {"offsets": pa.array(offsets)}
    if len(offsets) - 1 <= MOST_BITMAPS:
        slices = [by_value[begin:end] for begin, end in pairwise(offsets)]
        bitmaps = [bitmap_of(rows, num_rows) for rows in slices]
        joined = np.concatenate(bitmaps) if bitmaps else np.empty(0, np.uint8)
        return {**arrays, "bitmaps": pa.array(joined)}
    kind = np.uint32 if num_rows < 1 << 32 else np.int64
    arrays["rows"] = pa.array(by_value.astype(kind))
    if ordered:
        mask, parts = np.zeros(num_rows, dtype=np.bool_), [np.zeros(num_bytes(num_rows), np.uint8)]
        starts = part_starts(len(by_value))
        for begin, end in pairwise(starts):
            mask[by_value[begin:end]] = True
            parts.append(np.packbits(mask, bitorder="little"))
        arrays["prefixes"] = pa.array(np.concatenate(parts))
    return arrays

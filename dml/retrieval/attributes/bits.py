"""Bitmaps of rows: one bit a row, the lowest bit of a byte first, as Faiss' `IDSelectorBitmap` reads them."""

import numpy as np
from numpy.typing import NDArray

Bitmap = NDArray[np.uint8]

_FEW = 48  # rows per set bit, from which bits are set one by one: a mask of bytes takes as long at 32


def num_bytes(num_rows: int) -> int:
    """Of the bitmap of so many rows."""
    return (num_rows + 7) // 8


def bitmap_of(rows: NDArray[np.integer], num_rows: int) -> Bitmap:
    """The bitmap in which these rows are set."""
    if len(rows) * _FEW < num_rows:
        bits = np.zeros(num_bytes(num_rows), dtype=np.uint8)
        flip(bits, rows)
        return bits
    mask = np.zeros(num_rows, dtype=np.bool_)
    mask[rows] = True
    return np.packbits(mask, bitorder="little")


def flip(bitmap: Bitmap, rows: NDArray[np.integer]) -> None:
    """Set the rows that are not set, and the other way round, in place; twice where a row is named twice."""
    np.bitwise_xor.at(bitmap, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))


def rows_of(bitmap: Bitmap, num_rows: int) -> NDArray[np.int64]:
    """The rows that are set, ascending."""
    nonzero = np.flatnonzero(bitmap)
    if len(nonzero) * 2 > len(bitmap):
        return np.flatnonzero(np.unpackbits(bitmap, count=num_rows, bitorder="little").view(np.bool_))
    bits = np.flatnonzero(np.unpackbits(bitmap[nonzero], bitorder="little").view(np.bool_))
    rows: NDArray[np.int64] = nonzero[bits >> 3] * 8 + (bits & 7)
    return rows


def count_of(bitmap: Bitmap) -> int:
    """How many rows are set."""
    whole = len(bitmap) // 8 * 8
    words = bitmap[:whole].view(np.uint64)
    # In pieces that stay in the cache: the counts of all words would be written to memory and read again.
    pieces = (words[start : start + (1 << 15)] for start in range(0, len(words), 1 << 15))
    count = sum(int(np.bitwise_count(piece).sum(dtype=np.int64)) for piece in pieces)
    return count + int(np.bitwise_count(bitmap[whole:]).sum())


def are_set(bitmap: Bitmap, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether each row is set."""
    bits = bitmap[rows >> 3] >> (rows & 7).astype(np.uint8)
    is_set: NDArray[np.bool_] = (bits & 1).view(np.bool_)
    return is_set


def inverted(bitmap: Bitmap, num_rows: int) -> Bitmap:
    """The rows that are not set."""
    bits = ~bitmap
    if num_rows % 8:
        bits[-1] &= (1 << num_rows % 8) - 1
    return bits

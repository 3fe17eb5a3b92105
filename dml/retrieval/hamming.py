"""Pairs of binary codes within a Hamming distance, a block of queries at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

PAIRS_HELD = 1 << 24
"""200 MiB."""
_MOST_QUERIES = 1024


@dataclass(frozen=True)
class CodePairs:
    """Pairs that a block of queries has found; by query, then by distance, then by gallery row."""

    num_queries: int
    """Of the block."""
    queries: NDArray[np.int64]
    """(P,) rows among all queries."""
    gallery: NDArray[np.int64]
    """(P,) rows of the gallery."""
    distances: NDArray[np.int32]
    """(P,) bits that differ."""
    truncated: NDArray[np.int64]
    """Queries that have more pairs than `most`: only their nearest are here."""


def pairs_within(
    queries: NDArray[np.uint8],
    gallery: NDArray[np.uint8],
    *,
    max_distance: int,
    most: int,
    pairs_held: int = PAIRS_HELD,
) -> Iterator[CodePairs]:
    """Every pair of a query and a gallery code that differ in at most so many bits.

    Exact, by comparing all: 60,000 with 60,000 codes of 64 bits take 5 s on one core. Memory: the pairs of
    one block of queries, whose number is chosen so that even all of a block's pairs fit.

    Args:
        queries: (Q, bytes), bits packed.
        gallery: (N, bytes).
        max_distance: in bits, 0 for equal codes.
        most: pairs of one query, the nearest first.
        pairs_held: the most that a block can find.
    """
    index = faiss.IndexBinaryFlat(8 * gallery.shape[1])
    index.add(np.ascontiguousarray(gallery))
    size = min(_MOST_QUERIES, max(1, pairs_held // max(len(gallery), 1)))
    for start in range(0, len(queries), size):
        block = np.ascontiguousarray(queries[start : start + size])
        # Faiss finds distances below its radius.
        limits, distances, rows = index.range_search(block, max_distance + 1)
        yield _nearest_of(start, len(block), limits.astype(np.int64), distances.astype(np.int32), rows, most)


def _nearest_of(
    start: int,
    num_queries: int,
    limits: NDArray[np.int64],
    distances: NDArray[np.int32],
    rows: NDArray[np.int64],
    most: int,
) -> CodePairs:
    counts = np.diff(limits)
    queries = np.repeat(np.arange(start, start + num_queries), counts)
    order = np.lexsort((rows, distances, queries))
    kept = order[np.arange(len(order)) - np.repeat(limits[:-1], counts) < most]
    return CodePairs(
        num_queries,
        queries[kept],
        rows[kept].astype(np.int64),
        distances[kept],
        start + np.flatnonzero(counts > most),
    )

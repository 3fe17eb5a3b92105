"""Equal similarities rank by row, also where the k-th answer is as similar as the next."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""(Q, k) similarities and rows."""


def first_of_equals(
    search: Callable[[NDArray[np.float32], int], Found], queries: NDArray[np.float32], k: int, most: int
) -> Found:
    """The k most similar of each query, of equals the first rows.

    Faiss keeps any of several that are equal at the k-th place. So one more is searched for, and for queries
    whose next is equal to the k-th, twice as many until it is not.

    Args:
        search: (Q, D) queries and a number to (Q, number) similarities and rows, exactly.
        queries: (Q, D) float32.
        k: answers wanted, at most `most`.
        most: how many rows there are.
    """
    wanted = min(k + 1, most)
    similarities, rows = by_similarity(*search(queries, wanted))
    best_similarities, best_rows = similarities[:, :k].copy(), rows[:, :k].copy()
    numbers = np.arange(len(queries))
    while k and wanted < most:
        tied = similarities[:, k - 1] == similarities[:, -1]
        if not tied.any():
            break
        numbers, wanted = numbers[tied], min(2 * wanted, most)
        similarities, rows = by_similarity(*search(np.ascontiguousarray(queries[numbers]), wanted))
        best_similarities[numbers], best_rows[numbers] = similarities[:, :k], rows[:, :k]
    return best_similarities, best_rows


def by_similarity(similarities: NDArray[np.float32], rows: NDArray[np.int64]) -> Found:
    """(Q, k) by descending similarity, ties by row."""
    if (similarities[:, :-1] > similarities[:, 1:]).all():
        return similarities, rows  # as Faiss gives them, unless some are equal
    order = np.lexsort((rows, -similarities), axis=1)
    return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(rows, order, axis=1)

"""Equal similarities rank by row, also where the k-th answer is as similar as the next."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Neighbors: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]
"""(Q, k) similarities and rows."""


def first_of_equals(
    search: Callable[[NDArray[np.float32], int], Neighbors],
    queries: NDArray[np.float32],
    k: int,
    num_rows: int,
) -> Neighbors:
    """The k most similar of each query, of equals the first rows.

    Faiss keeps any of several rows that are equal at rank k. So one more is searched for, and where it is
    equal to rank k, twice as many until the last is less similar.

    Args:
        search: (Q, D) queries and a number to (Q, number) similarities and rows, exactly.
        queries: (Q, D) float32.
        k: answers wanted, at most `num_rows`.
        num_rows: of the index.
    """
    wanted = min(k + 1, num_rows)
    similarities, rows = by_similarity(*search(queries, wanted))
    best_similarities, best_rows = similarities[:, :k], rows[:, :k]
    unfinished = np.arange(len(queries))
    while k and wanted < num_rows:
        tied = similarities[:, k - 1] == similarities[:, -1]
        if not tied.any():
            break
        unfinished, wanted = unfinished[tied], min(2 * wanted, num_rows)
        similarities, rows = by_similarity(*search(np.ascontiguousarray(queries[unfinished]), wanted))
        best_similarities[unfinished], best_rows[unfinished] = similarities[:, :k], rows[:, :k]
    return best_similarities, best_rows


def by_similarity(similarities: NDArray[np.float32], rows: NDArray[np.int64]) -> Neighbors:
    """(Q, k) by descending similarity, ties by row."""
    if (similarities[:, :-1] > similarities[:, 1:]).all():
        return similarities, rows  # as Faiss gives them, unless some are equal
    order = np.lexsort((rows, -similarities), axis=1)
    queries = np.arange(len(order))[:, None]
    return similarities[queries, order], rows[queries, order]

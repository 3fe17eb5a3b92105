"""The queries by which an index's recall is measured: rows of the table, with their exact neighbours."""

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.retrieval.tune import HeldOut, K, graph_of
from dml.retrieval.vectors import FlatVectors

_LARGEST_SHARE = 5
"""One of so many rows is held out, at most: an index of much fewer rows has another recall."""


def rows_held_out(num_rows: int, num_queries: int, *, fewest: int = 1) -> NDArray[np.int64]:
    """(Q,) random rows, ascending; until an index is tuned, it is not trained on them, and no graph has them.

    Rows of a graph are easier to find than queries: their own links lead to their neighbours. So efSearch by
    which rows are found with a recall of 0.95 gives 0.86 for queries, and centroids lie nearer to the rows
    that they were trained on (`tests/retrieval/test_held_out.py`).

    Args:
        num_rows: of the table.
        num_queries: that are wanted; few rows have fewer.
        fewest: of the other rows, that the index needs; one row is held out all the same.
    """
    number = min(num_queries, max(min(num_rows // _LARGEST_SHARE, num_rows - fewest), 1))
    return np.sort(np.random.default_rng(1).choice(num_rows, number, replace=False))


def hold_out(
    vectors: FlatVectors, items: pa.Table, index: faiss.Index, rows: NDArray[np.int64]
) -> HeldOut | None:
    """Rows as queries, with their exact neighbours; None: there are no neighbours to find.

    Args:
        vectors: all N.
        items: all N.
        index: to be tuned; a graph of the other rows, or another index of all.
        rows: (Q,) the queries.
    """
    if graph_of(index) is None:
        return leave_one_out(vectors, items, rows)
    k = min(K, vectors.rows - len(rows))
    if k < 1:
        return None
    queries = vectors.take(rows)
    _, nearest = vectors.search(queries, min(k + len(rows), _LARGEST_SHARE * k + 20, vectors.rows))
    is_indexed = np.ones(vectors.rows, dtype=np.bool_)
    is_indexed[rows] = False
    first = np.argsort(~is_indexed[nearest], axis=1, kind="stable")[:, :k]
    truth = np.take_along_axis(nearest, first, axis=1)
    indexed = np.flatnonzero(is_indexed)
    return HeldOut(rows, queries, truth, _label_numbers(items), indexed, vectors.take)


def leave_one_out(vectors: FlatVectors, items: pa.Table, rows: NDArray[np.int64]) -> HeldOut | None:
    """As `hold_out`, for what holds every row: each query's neighbours are all rows but itself."""
    k = min(K, vectors.rows - 1)
    if k < 1:
        return None
    queries = vectors.take(rows)
    nearest = vectors.search(queries, k + 1)[1]
    return HeldOut.of(rows, queries, nearest, _label_numbers(items), take=vectors.take)


def _label_numbers(items: pa.Table) -> NDArray[np.int64] | None:
    """(N,) a number for each label, another one for each missing; None: there are no labels."""
    if "label" not in items.column_names or items["label"].null_count == len(items):
        return None
    chunks = items["label"].dictionary_encode().chunks  # with one dictionary
    labels = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in chunks]).astype(np.int64)
    missing = labels < 0
    labels[missing] = labels.max() + 1 + np.arange(int(missing.sum()))
    return labels

"""The queries by which an index's recall is measured: displaced rows, with their exact neighbours."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.config import IndexConfig
from dml.retrieval.tune import HeldOut, K
from dml.retrieval.vectors import FlatVectors


def hold_out(vectors: FlatVectors, items: pa.Table, config: IndexConfig) -> HeldOut | None:
    """Queries with their exact neighbours; None: there are no neighbours to find.

    A query lies as far from a row of the table as another row from its nearest neighbour, and that row is no
    answer. Rows themselves are easier to find than queries: a graph with a recall of 0.99 for them has 0.94.
    """
    k = min(K, vectors.rows - 1)
    if k == 0:
        return None
    number = min(config.recall_queries, vectors.rows)
    rows = np.random.default_rng(1).choice(vectors.rows, number, replace=False)
    queries = _displaced(vectors, rows)
    _, nearest = vectors.search(queries, k + 1)
    return HeldOut.of(rows, queries, nearest, _label_numbers(items))


def _displaced(vectors: FlatVectors, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(Q, D) of unit length: rows, each moved by the difference of another one and its nearest neighbour."""
    taken = vectors.take(rows)
    _, nearest = vectors.search(taken, 2)
    others = np.where(nearest[:, 0] == rows, nearest[:, 1], nearest[:, 0])
    moved = taken + np.roll(vectors.take(others) - taken, 1, axis=0)
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    queries: NDArray[np.float32] = np.where(lengths > 0, moved / np.maximum(lengths, 1e-12), taken)
    return queries


def _label_numbers(items: pa.Table) -> NDArray[np.int64] | None:
    """(N,) a number for each label, another one for each missing; None: there are no labels."""
    if "label" not in items.column_names or items["label"].null_count == len(items):
        return None
    chunks = items["label"].dictionary_encode().chunks  # with one dictionary
    labels = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in chunks]).astype(np.int64)
    missing = labels < 0
    labels[missing] = labels.max() + 1 + np.arange(int(missing.sum()))
    return labels

"""The rows of an index version: flat vectors and items as files, and a Faiss index filled with them."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from dml.config import IndexConfig
from dml.errors import InvalidSetting, did_you_mean
from dml.progress import begin, count
from dml.retrieval.attributes import write_attributes
from dml.retrieval.bundle import INDEX_FILE, ITEMS_FILE, VECTORS_FILE, in_order, read_items, write_items
from dml.retrieval.changes import ChangedRows
from dml.retrieval.factory import FLAT_FACTORY, empty_index, refused_factory
from dml.retrieval.fill import add, fewest_rows, nearest_lists, train
from dml.retrieval.first_stage_choice import require_first_stage
from dml.retrieval.held_out import rows_held_out
from dml.retrieval.vectors import FlatVectors, VectorType, write_vectors


def write_rows(
    folder: Path, factory: str, rows: ChangedRows, config: IndexConfig
) -> tuple[FlatVectors, pa.Table, faiss.Index, NDArray[np.int64]]:
    """Write flat vectors, items and indexes of their attributes, and fill an index.

    A flat index is the file of the vectors.

    Returns:
        Vectors and items, mapped, also when the folder has its final name; the index; and the rows that it is
        tuned on, which a graph is filled without.

    Raises:
        InvalidSetting: the settings cannot be followed with these rows.
    """
    is_both = factory == FLAT_FACTORY[config.vectors]
    embeddings = rows.embeddings
    begin("writing items", "rows", embeddings.rows)
    write_items(folder, rows.items())
    items = read_items(folder)
    if not len(items):
        raise InvalidSetting(
            f"An index must have an item; all {embeddings.rows} of {embeddings.source} were forgotten. "
            "Remove the index, or enrol somebody."
        )
    if config.first_stage not in (None, "auto"):
        require_first_stage(config.first_stage, len(items), embeddings.dim)
    index = empty_index(factory, embeddings, num_probes=config.num_probes)
    path = folder / (INDEX_FILE if is_both else VECTORS_FILE)
    begin("reading vectors", "rows", embeddings.rows)
    vectors = _write_vectors(path, rows.vectors(), len(items), embeddings.dim, config.vectors)
    pa.default_memory_pool().release_unused()  # what reading took, before the index takes its memory
    queries = rows_held_out(vectors.rows, config.recall_queries, fewest=fewest_rows(index))
    try:
        if not is_both:
            train(index, vectors, without=queries)
        if config.order_by is not None:
            order = _order(index, vectors, items, config.order_by)
            vectors, items = _write_in_order(folder, path, vectors, items, order)
            queries = np.flatnonzero(np.isin(order, queries))
    except RuntimeError as error:
        raise refused_factory(factory, error) from error
    write_attributes(folder, items)  # before the index takes its memory
    pa.default_memory_pool().release_unused()
    try:
        if not is_both:
            add(index, vectors, without=queries)
    except RuntimeError as error:
        raise refused_factory(factory, error) from error
    return vectors, items, vectors.index if is_both else index, queries


def _write_vectors(
    path: Path, blocks: Iterator[NDArray[np.float32]], rows: int, dim: int, dtype: VectorType
) -> FlatVectors:
    with path.open("wb") as file:
        write_vectors(file.write, _counted(blocks), rows=rows, dim=dim, dtype=dtype)
    return FlatVectors(str(path))


def _order(index: faiss.Index, vectors: FlatVectors, items: pa.Table, column: str) -> NDArray[np.int64]:
    """(N,) rows by their value in a column, missing ones last; those of a value by their list."""
    if column not in items.column_names:
        raise InvalidSetting(
            f"index.order_by must be one of the columns {items.column_names}; got {column!r}."
            f"{did_you_mean(column, items.column_names)}"
        )
    begin(f"ordering by {column}")
    ranks = compute.rank(items[column], "ascending", tiebreaker="dense").to_numpy()
    is_listed = isinstance(index, faiss.IndexIVF)
    lists = nearest_lists(index, vectors) if is_listed else np.zeros(len(items), np.int64)  # type: ignore[arg-type]
    return np.lexsort((lists, ranks))


def _write_in_order(
    folder: Path, path: Path, vectors: FlatVectors, items: pa.Table, order: NDArray[np.int64]
) -> tuple[FlatVectors, pa.Table]:
    """Write vectors and items again in another order of rows, in place of those that there are."""
    begin("writing rows in order", "rows", 2 * len(order))
    with TemporaryDirectory(dir=folder) as aside:
        rows = (
            order[start : start + vectors.block_rows] for start in range(0, len(order), vectors.block_rows)
        )
        blocks = (vectors.take(block) for block in rows)
        _write_vectors(Path(aside) / path.name, blocks, vectors.rows, vectors.dim, vectors.dtype)
        write_items(Path(aside), in_order(items, order))
        for name in (path.name, ITEMS_FILE):
            os.replace(Path(aside) / name, folder / name)
    return FlatVectors(str(path)), read_items(folder)


def _counted(blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    for block in blocks:
        yield block
        count(len(block))

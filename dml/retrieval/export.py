"""An index's vectors and items as files for other programs: Parquet, NumPy or Faiss.

Row i of one file is row i of the other. Vectors are those of the embeddings table and of what was enrolled,
exactly, also where the index itself holds compressed ones.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from dml import storage
from dml.data.schema import POSITION
from dml.errors import CorruptArtifact, InvalidSetting
from dml.progress import Ticker, count
from dml.refs import IndexRef
from dml.reports import ExportFormat, ExportReport
from dml.retrieval.bundle import INDEX_FILE
from dml.retrieval.changes import ChangedRows
from dml.retrieval.shards import open_index

VECTORS_PARQUET, VECTORS_NPY, ITEMS_PARQUET = "vectors.parquet", "vectors.npy", "items.parquet"


def export_index(ref: IndexRef, to: ExportFormat, folder: Path) -> ExportReport:
    """Write an index's vectors and items into a new folder, which appears whole or not at all.

    Args:
        ref: the index version.
        to: "parquet": `vectors.parquet` with the items' columns and `embedding`, a list of D float32;
            "npy": `vectors.npy` (N, D) float32 and `items.parquet`; "faiss": `index.faiss` as it is
            searched, and `items.parquet`.
        folder: must not be there yet.

    Raises:
        InvalidSetting: there is something in its place, or no folder to make it in.
        MissingArtifact, CorruptArtifact: the index or its embeddings table are not as they were published.
    """
    if to == "faiss" and ref.shards:
        raise InvalidSetting(
            f"--to faiss writes the file of one Faiss index; {ref} has {len(ref.shards)} shards. Use --to "
            "parquet or npy, or build it without --shards."
        )
    with Ticker("export") as ticker, _new_folder(folder) as aside:
        ticker.begin(f"writing {to}", "rows", ref.rows)
        _WRITERS[to](ref, aside)
        files = sorted(path.name for path in aside.iterdir())
    return ExportReport(
        index=str(ref),
        format=to,
        folder=str(folder.resolve()),
        files=files,
        rows=ref.rows,
        dim=ref.embeddings.dim,
    )


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside, which takes this one's name in the end; what is there already stays untouched."""
    if folder.exists() or folder.is_symlink():
        raise InvalidSetting(f"--out must be a folder that is not there yet; {folder} is. Name another.")
    if not folder.resolve().parent.is_dir():
        raise InvalidSetting(
            f"--out must be in a folder that is there; {folder.resolve().parent} is not. Make it."
        )
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        aside.mkdir()
    except OSError as error:
        raise InvalidSetting(
            f"--out must be in a folder that can be written; {folder.resolve().parent}: {error.strerror}. "
            "Name another."
        ) from error
    try:
        yield aside
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _blocks(ref: IndexRef) -> Iterator[tuple[pa.Table, NDArray[np.float32]]]:
    """The items and vectors of an index, some at a time, in its table's order; then what was enrolled."""
    rows = ChangedRows(ref.embeddings, ref.changes)
    items = _without_position(pa.concat_tables(rows.items()))
    if len(items) != ref.rows:
        raise CorruptArtifact(
            f"Index {ref.uri} must have the {len(items)} items of {ref.embeddings.uri} and of its gallery; "
            f"it has {ref.rows}. `dml verify --repair` builds it again."
        )
    start = 0
    for vectors in rows.vectors():
        yield items.slice(start, len(vectors)), vectors
        start += len(vectors)
        count(len(vectors))


def _without_position(items: pa.Table) -> pa.Table:
    return items.drop_columns([name for name in (POSITION,) if name in items.column_names])


def _write_parquet(ref: IndexRef, folder: Path) -> None:
    dim = ref.embeddings.dim
    embedding = pa.field("embedding", pa.list_(pa.float32()), nullable=False)
    with ExitStack() as stack:
        writer = None
        for items, vectors in _blocks(ref):
            offsets = pa.array(range(0, vectors.size + 1, dim), pa.int32())
            column = pa.ListArray.from_arrays(offsets, vectors.ravel())
            table = items.append_column(embedding, column)
            # Without Arrow's own schema in it: a plain list of floats to every reader.
            writer = writer or stack.enter_context(
                parquet.ParquetWriter(
                    folder / VECTORS_PARQUET, table.schema, compression="zstd", store_schema=False
                )
            )
            writer.write_table(table)


def _write_npy(ref: IndexRef, folder: Path) -> None:
    shape = (ref.rows, ref.embeddings.dim)
    array = np.lib.format.open_memmap(folder / VECTORS_NPY, mode="w+", dtype=np.float32, shape=shape)
    start, parts = 0, []
    for items, vectors in _blocks(ref):
        array[start : start + len(vectors)] = vectors
        start += len(vectors)
        parts.append(items)
    array.flush()
    parquet.write_table(pa.concat_tables(parts), folder / ITEMS_PARQUET)


def _write_faiss(ref: IndexRef, folder: Path) -> None:
    shutil.copyfile(storage.fetch(ref.uri, ref.fingerprint) / INDEX_FILE, folder / INDEX_FILE)
    parquet.write_table(_without_position(open_index(ref).items), folder / ITEMS_PARQUET)


_WRITERS: dict[ExportFormat, Callable[[IndexRef, Path], None]] = {
    "parquet": _write_parquet,
    "npy": _write_npy,
    "faiss": _write_faiss,
}

"""The items of a file of vectors: ids, labels and attributes, from that file or from tables beside it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dml.data.items import as_items, read_ids, read_table, with_attributes
from dml.embedding.vector_files import (
    Hdf5File,
    ParquetFile,
    VectorFile,
    read_columns,
    read_hdf5_text,
    require_file,
)
from dml.errors import InvalidData


def read_items(file: VectorFile, ids: Path | None, attributes: Path | None) -> tuple[pa.Table, list[str]]:
    """The items of a file's N vectors, in their order.

    Args:
        file: the vectors.
        ids: N ids; None: those of the vectors' own table, else of `attributes`, else the rows' numbers.
        attributes: a table with a column `id`, or N rows in the vectors' order; None: the other columns of
            the vectors' own table.

    Returns:
        (N,) `id`, and `label` and attributes if there are any; and notes on what was left out.

    Raises:
        MissingArtifact: a file is not there.
        InvalidData: a file is damaged, holds something else, or there are other than N ids.
    """
    for path in (ids, attributes):
        if path is not None:
            require_file(path)
    own, notes = _own_columns(file, only_ids=attributes is not None)
    table = own
    if attributes is not None:
        table, notes = _attributes_beside(file, attributes)
    if ids is None:
        chosen = _ids(file, own, table)
    else:
        chosen, ids_notes = _ids_beside(ids, attributes)
        notes = [*ids_notes, *notes]
    if len(chosen) != file.num_rows:
        raise InvalidData(
            f"Every vector must have an id; {file.path} has {file.num_rows} vectors, and there are "
            f"{len(chosen)} ids. Give one for each vector, in the same order."
        )
    if ids is not None and attributes is None and "id" in table.column_names:
        table = table.drop_columns("id")  # its rows are the vectors' own, whatever they were called there
    if not table.num_columns:
        return pa.table({"id": chosen}), notes
    items, unmatched = with_attributes(chosen, table, attributes or file.path)
    return items, [*notes, *unmatched]


def _own_columns(file: VectorFile, *, only_ids: bool) -> tuple[pa.Table, list[str]]:
    """The items' columns in the vectors' file itself."""
    if isinstance(file, ParquetFile):
        columns = [name for name in file.other_columns if name == "id" or not only_ids]
        return as_items(read_columns(file.path, columns), file.path)
    if isinstance(file, Hdf5File) and (texts := read_hdf5_text(file.path, ("id", "ids"))) is not None:
        return pa.table({"id": pa.array(texts, pa.large_string())}), []
    return pa.table({}), []


def _attributes_beside(file: VectorFile, attributes: Path) -> tuple[pa.Table, list[str]]:
    """The table of attributes, and notes on what is left out of it and of the vectors' own table."""
    table, notes = read_table(attributes)
    if isinstance(file, ParquetFile) and attributes != file.path:
        others = [name for name in file.other_columns if name != "id"]
        notes = [*_unread(others, file.path, f"the attributes are those of {attributes}"), *notes]
    return table, notes


def _ids_beside(ids: Path, attributes: Path | None) -> tuple[pa.ChunkedArray, list[str]]:
    """The ids of their own file, and a note on its other columns."""
    chosen, others = read_ids(ids)
    if ids == attributes:
        return chosen, []
    return chosen, _unread(others, ids, f"--ids takes `id` alone; add --attributes {ids}")


def _ids(file: VectorFile, own: pa.Table, attributes: pa.Table) -> pa.ChunkedArray:
    """Those of the vectors' own table, else of the attributes, else the rows' numbers."""
    for table in (own, attributes):
        if "id" in table.column_names:
            return table["id"]
    numbers = pa.array(np.arange(file.num_rows)).cast(pa.large_string())
    return pa.chunked_array([numbers])


def _unread(columns: Sequence[str], path: Path, reason: str) -> list[str]:
    return [f"columns {list(columns)} of {path} are left out: {reason}"] if columns else []

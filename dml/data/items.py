"""Items without images: ids, labels and attributes from tables, and the fragments of a published version.

They are held in memory as Arrow columns; their vectors, which are much larger, are not.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, csv, parquet

from dml import storage
from dml.data.schema import (
    BASE_COLUMNS,
    CLASS_ID,
    IMAGE,
    POSITION,
    Fragment,
    items_schema,
    write_fragment,
)
from dml.data.sources.csv_table import PARSERS, declared_types, inferred_type
from dml.data.sources.table import is_index
from dml.errors import InvalidData, InvalidSetting
from dml.labels import normalized
from dml.refs import AttributeType

TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".pq")
_RESERVED_NAMES = {*BASE_COLUMNS, IMAGE, POSITION, CLASS_ID, "similarity", "embedding"} - {
    "id",
    "label",
    "split",
}
_SHOWN = 60
_CSV_ENDINGS = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
"""As of a manifest; the first if the header has none."""
_MOST_HEADER_BYTES = 1 << 20
_ARROW_TYPES = {"string": pa.large_string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}


def read_table(path: Path) -> tuple[pa.Table, list[str]]:
    """Columns of a CSV or Parquet table, in the types of attributes, and a note on each ignored column.

    A CSV column whose values do not read back as the same numbers stays text, such as `007`; a header such as
    `price:double` declares the type. `id` and `label` are always text.

    Raises:
        InvalidSetting: the file has another suffix.
        InvalidData: the table cannot be read, or a column has a name that no attribute may have.
    """
    if path.suffix.lower() not in TABLE_ENDINGS:
        raise InvalidSetting(f"A table of items must end in one of {list(TABLE_ENDINGS)}; got {path}.")
    try:
        if path.suffix.lower() in _CSV_ENDINGS:
            return as_items(_read_csv(path), path)
        return as_items(parquet.read_table(path, partitioning=None), path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InvalidData(
            f"{path} must be a whole table, text in UTF-8: {reason}. Write it again."
        ) from error


def _read_csv(path: Path) -> pa.Table:
    """The columns of a CSV file, each cast to its declared or inferred type."""
    delimiter = _delimiter_of(path)
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    header = csv.open_csv(path, parse_options=parsing).schema.names
    if (
        len(header) == 1
    ):  # there a blank line is a row without a value, which others must not take the place of
        parsing.ignore_empty_lines = False
    names, declared = declared_types(header, str(path))
    converting = csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    table = csv.read_csv(path, parse_options=parsing, convert_options=converting).rename_columns(names)
    if len(names) == 1:
        table = table.slice(0, _num_before_blanks(table[0]))
    columns = {}
    for name in names:
        texts = table[name].cast(pa.large_string())
        is_text = name in ("id", "label")
        kind = "string" if is_text else declared.get(name) or inferred_type(texts.unique().to_pylist())
        columns[name] = texts if kind == "string" else _parsed(texts, kind, name, path)
    return pa.table(columns)


def _parsed(texts: pa.ChunkedArray, kind: str, name: str, path: Path) -> pa.ChunkedArray:
    """A column of text as numbers or booleans, as a manifest has them."""
    spelt = texts.unique().drop_null()
    values = []
    for text in spelt.to_pylist():
        try:
            values.append(PARSERS[kind](text))
        except ValueError:
            row = compute.index(texts, text).as_py() + 1
            raise InvalidData(
                f"Column {name!r} of {path} must be {kind}; got {text[:_SHOWN]!r} in row {row}. Correct it, "
                f"or declare {name}:string."
            ) from None
    return compute.take(pa.array(values, _ARROW_TYPES[kind]), compute.index_in(texts, spelt))


def _delimiter_of(path: Path) -> str:
    """The delimiter that stands most often in the header; of a .tsv a tab."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open("rb") as stream:
        header = stream.readline(_MOST_HEADER_BYTES)  # names, in which none of them stands
    return max(_DELIMITERS, key=lambda each: header.count(each.encode()))


def _num_before_blanks(values: pa.ChunkedArray) -> int:
    """The number of rows up to the last with a value: blank lines at a file's end mean nothing."""
    present = np.flatnonzero(values.is_valid().to_numpy())
    return int(present[-1]) + 1 if len(present) else 0


def as_items(table: pa.Table, path: Path) -> tuple[pa.Table, list[str]]:
    """The columns of a table that items can have, cast to their types, and a note on each ignored column."""
    require_unique_names(table.column_names, path)
    _require_attribute_names([name for name in table.column_names if not is_index(name)], path)
    columns: dict[str, pa.ChunkedArray] = {}
    notes = []
    for field in table.schema:
        if is_index(field.name):
            continue
        values = table[field.name]
        if field.name == "id":
            columns["id"] = _as_ids(values, path)
        elif field.name == "label":
            columns["label"] = _as_labels(values, path)
        else:
            kind = _type_of(field.type)
            if field.name in _RESERVED_NAMES:
                notes.append(f"column {field.name!r} of {path} is left out: no attribute can have that name")
                continue
            if kind is None:
                notes.append(
                    f"column {field.name!r} of {path} is left out: an attribute cannot be {field.type}"
                )
            else:
                columns[field.name] = _cast(values, _ARROW_TYPES[kind], field.name, path)
    return pa.table(columns), notes


def _require_attribute_names(names: Sequence[str], path: Path) -> None:
    """Raise InvalidData for a column whose name no attribute can have, with one that it could have."""
    unusable = [name for name in names if not name.isidentifier()]
    if not unusable:
        return
    name, more = unusable[0], f" and {len(unusable) - 1} more" if len(unusable) > 1 else ""
    shown = name[:_SHOWN]
    usable = re.sub(r"\W+", "_", shown).strip("_")
    usable = usable if usable.isidentifier() else f"column_{usable}".rstrip("_")
    how = f"Rename it in the file, as {usable}, or leave it out"
    if path.suffix.lower() not in _CSV_ENDINGS:
        how += (
            f", by pyarrow's table.rename_columns({{{shown!r}: {usable!r}}}) or table.drop_columns({shown!r})"
        )
    raise InvalidData(
        f"Each column of {path} must have a name of letters, digits and underscores, to be an attribute; got "
        f"{shown!r}{more}. {how}."
    )


def require_unique_names(names: Sequence[str], path: Path) -> None:
    """Raise InvalidData where two columns have the same name."""
    if repeated_names := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidData(
            f"Each column of {path} must have a unique name; got {repeated_names} twice. Rename one."
        )


def _cast(values: pa.ChunkedArray, kind: pa.DataType, name: str, path: Path) -> pa.ChunkedArray:
    """The values in a type that holds each of them unchanged; text is checked to be UTF-8."""
    try:
        converted = values.cast(kind)
        if pa.types.is_large_string(kind):
            converted.validate(full=True)
    except pa.ArrowException as error:
        what = "text in UTF-8" if pa.types.is_large_string(kind) else f"values that fit {kind}"
        reason = str(error).splitlines()[0].rstrip(".")
        raise InvalidData(
            f"Column {name!r} of {path} must hold {what}; {reason}. Convert the column, or leave it out."
        ) from error
    return converted


def _as_ids(values: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    if _type_of(values.type) not in ("string", "int64"):
        raise InvalidData(f"Ids must be text or whole numbers; those of {path} are {values.type}.")
    return _cast(values, pa.large_string(), "id", path)


def _as_labels(values: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    """Labels without surrounding white space, in Unicode form NFC; blank labels and NaN are missing."""
    if _type_of(values.type) is None:
        raise InvalidData(f"Labels must be text or numbers; those of {path} are {values.type}.")
    if pa.types.is_floating(values.type):
        values = compute.if_else(compute.is_nan(values), pa.scalar(None, values.type), values)
    texts = _cast(values, pa.large_string(), "label", path)
    raw = texts.unique().drop_null()
    labels = pa.array([normalized(text.as_py()) or None for text in raw], pa.large_string())
    return compute.take(labels, compute.index_in(texts, raw))


def _type_of(kind: pa.DataType) -> AttributeType | None:
    """The attribute type for an Arrow type; None if attributes cannot hold it."""
    types = pa.types
    if types.is_dictionary(kind):
        return _type_of(kind.value_type)
    if types.is_boolean(kind):
        return "bool"
    if types.is_integer(kind):
        return "int64"
    if types.is_floating(kind) or types.is_decimal(kind):
        return "double"
    is_text = (types.is_string, types.is_large_string, types.is_string_view, types.is_null, types.is_temporal)
    return "string" if any(test(kind) for test in is_text) else None


def read_ids(path: Path) -> tuple[pa.ChunkedArray, list[str]]:
    """The ids of vectors, in their order: the column `id` of a table, or the lines of a text file.

    Returns:
        The ids, and the names of the table's other columns, which nobody reads.

    Raises:
        InvalidSetting: the file has another suffix.
        InvalidData: the table has no column `id`, or the file cannot be read.
    """
    if path.suffix.lower() == ".txt":
        try:
            # Not splitlines(): form feeds and Unicode's line separators may stand in an id.
            lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise InvalidData(f"{path} must be text in UTF-8; {error.reason}. Write it again.") from error
        return pa.chunked_array([pa.array(lines, pa.large_string())]), []
    table, _ = read_table(path)
    if "id" not in table.column_names:
        raise InvalidData(
            f"A table of ids must have a column `id`; {path} has {table.column_names}. Rename "
            "a column, or write the ids to a .txt file, one per line."
        )
    return table["id"], [name for name in table.column_names if name != "id"]


def with_attributes(ids: pa.ChunkedArray, table: pa.Table, path: Path) -> tuple[pa.Table, list[str]]:
    """A table's rows in the order of the ids, and notes on ids and rows without a match.

    Args:
        ids: (N,) large_string.
        table: has a column `id`, or N rows in the order of the ids.
        path: the table's path, for messages.

    Raises:
        InvalidData: a table without ids does not have N rows, or an id is repeated.
    """
    if "id" not in table.column_names:
        if len(table) != len(ids):
            raise InvalidData(
                f"Attributes without a column `id` must have a row for each vector; {path} has {len(table)} "
                f"rows for {len(ids)} vectors. Add the column, or the missing rows."
            )
        return table.add_column(0, "id", ids), []
    table_ids = table["id"]
    if table_ids.equals(ids):
        return table, []
    num_repeated = len(table_ids) - len(table_ids.unique())
    if num_repeated:
        raise InvalidData(
            f"Each id of {path} must be unique; {num_repeated} rows repeat an id. Keep one row per id."
        )
    rows = compute.index_in(ids, value_set=table_ids.combine_chunks())
    matched = table.drop_columns("id").take(rows)
    notes = []
    if rows.null_count:
        notes.append(
            f"{rows.null_count} of {len(ids)} items have no row in {path}: their attributes are missing"
        )
    if unused := len(table_ids) - (len(ids) - rows.null_count):
        notes.append(f"{unused} rows of {path} belong to no vector")
    return matched.add_column(0, "id", ids), notes


def repeated(ids: pa.ChunkedArray) -> NDArray[np.bool_]:
    """(N,) whether an earlier row has the same id."""
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    is_repeated = np.ones(len(ids), dtype=np.bool_)
    is_repeated[np.unique(codes, return_index=True)[1]] = False
    return is_repeated


def attribute_types_of(table: pa.Table) -> dict[str, AttributeType]:
    """The type of each attribute of a table of items."""
    names = {kind: name for name, kind in _ARROW_TYPES.items()}
    return {f.name: names[f.type] for f in table.schema if f.name not in ("id", "label")}


def write_items(folder: str, rows: pa.Table) -> Fragment | None:
    """Write one fragment of items; None where there are no rows."""
    schema = items_schema(attribute_types_of(rows))
    if "label" not in rows.column_names:
        rows = rows.append_column("label", pa.nulls(len(rows), pa.string()))
    return write_fragment(
        folder, [rows.select(schema.names).cast(schema)], schema, temporary_name=".fragment"
    )


def seal_items(folder: str, ref: dict[str, object], fragments: Sequence[Fragment]) -> None:
    """Write the manifest that makes a folder of fragments an items artefact."""
    storage.seal(folder, {"ref": ref, "fragments": [fragment._asdict() for fragment in fragments]})

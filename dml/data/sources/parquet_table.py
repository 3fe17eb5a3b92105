"""Parquet manifests: typed columns, and images as paths, bytes, or Hugging Face structs.

Hugging Face's `datasets` stores an image as a struct of `bytes` and `path`, and a class as an integer whose
name is in the file's metadata; both are supported.
"""

import json
import os
import stat
import threading
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import compute, parquet

from dml import storage
from dml.data.sources.sample import Problem, Refused
from dml.data.sources.table import NAMED, Table, is_index, unusable_column
from dml.errors import InvalidData, MissingArtifact

_CACHE_BYTES = 256 << 20
_GROUP_BYTES = 2 << 30


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file: its columns without the images, and its images one by one."""

    uri: str

    def read(self) -> Table:
        """The table without the images' bytes; raises InvalidData if it is not a valid manifest."""
        _cache.clear()  # nothing tells of each image of an object on S3 whether it is still the same object
        try:
            return self._read()
        except (InvalidData, MissingArtifact, MemoryError):
            raise
        except Exception as error:  # Arrow raises various errors for damage
            raise InvalidData(
                f"{self.uri} must be a whole Parquet table: {str(error).rstrip('.')}. Write it again."
            ) from error

    def has_all_bytes(self) -> bool:
        """Whether the images are certainly bytes in the table, and none is a path to another file."""
        with open_parquet(self.uri) as file:
            kind = file.schema_arrow.field("image").type
            if not pa.types.is_struct(kind) or "path" not in _field_names(kind):
                return True
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        contents = [
            group.column(number)
            for group in groups
            for number in range(group.num_columns)
            if group.column(number).path_in_schema == "image.bytes"
        ]
        return len(contents) == len(groups) and all(
            column.is_stats_set and column.statistics.has_null_count and not column.statistics.null_count
            for column in contents
        )

    def image(self, row: int, max_bytes: int) -> bytes | str:
        """The bytes of a row's image, or its path if the row has no bytes."""
        try:
            value = _cache.image(self, row)
        except (Refused, MemoryError):
            raise
        except Exception as error:
            raise Refused("unreadable file", f"row {row} of {self.uri}: {error}") from error
        path = value.get("path") if isinstance(value, dict) else None
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None and not path:
            raise Refused("missing file", "the row's image is blank")
        if content is None:
            return str(path)
        if len(content) > max_bytes:
            raise Refused("too many bytes", f"{len(content)} bytes; at most {max_bytes} are read")
        return bytes(content)

    def _read(self) -> Table:
        with open_parquet(self.uri) as file:
            schema = file.schema_arrow
            self._require_unlike_names(schema)
            kept = [field for field in schema if not is_index(field.name)]
            inline = self._inline_image(kept)
            table = file.read(columns=_names_to_read(kept, inline))
        class_names = _class_names(schema)
        columns: dict[str, list[Any]] = {}
        problems: list[Problem] = []
        for field in kept:
            try:
                if field is inline:
                    columns["image"] = _paths(table) or [f"#{row}" for row in range(table.num_rows)]
                else:
                    columns[field.name] = self._values(field, table, class_names.get(field.name))
            except _NoAttribute as error:
                problems.append(unusable_column(self.uri, field.name, f"{field.type}: {error}"))
        ids_are_rows = False
        if inline is not None and "id" not in columns:
            paths = [path for path in _paths(table) if path]
            ids_are_rows = len(set(paths)) < table.num_rows
            columns["id"] = [f"row-{row:08d}" for row in range(table.num_rows)] if ids_are_rows else paths
        return Table(
            schema.names,
            columns,
            is_inline=inline is not None,
            problems=problems,
            ids_are_rows=ids_are_rows,
        )

    def _require_unlike_names(self, schema: pa.Schema) -> None:
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise InvalidData(
                f"Each column of {self.uri} must have a unique name; got {twice} twice. Rename one."
            )

    def _inline_image(self, fields: list[pa.Field]) -> pa.Field | None:
        """The column of images, where it holds their bytes."""
        image = next((field for field in fields if field.name == "image"), None)
        if image is None:
            return None
        if not _has_usable_fields(image.type):
            raise InvalidData(
                f"The column image of {self.uri} must hold bytes in its field bytes, and text in its "
                f"field path; it is {image.type}. Write the files' bytes."
            )
        return image if _holds_images(image.type) else None

    def _values(self, field: pa.Field, table: pa.Table, class_names: list[str] | None) -> list[Any]:
        """A column as `_plain` gives it; raises _NoAttribute for one that is left out."""
        must = f"The column {field.name} of {self.uri} must be text{_OR_BYTES[field.name == 'image']}"
        if pa.types.is_nested(field.type):
            if field.name in NAMED:
                raise InvalidData(f"{must}; it is {field.type}. Write one value a row.")
            raise _NoAttribute("an attribute is text, a number or true or false")
        try:
            return _plain(field, table[field.name], class_names)
        except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
            if field.name in NAMED:
                raise InvalidData(
                    f"{must}; its {field.type} is none: {error}. Write it as one of these."
                ) from error
            raise _NoAttribute(str(error)) from error


class _NoAttribute(Exception):
    """Why a column is left out."""


_OR_BYTES = {True: ", bytes, or a struct of bytes and path", False: " or whole numbers"}


def is_parquet(path: str) -> bool:
    """Whether a local regular file starts with Parquet's magic bytes."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError:
        return False


def open_parquet(uri: str) -> parquet.ParquetFile:
    filesystem, path = storage.filesystem(uri)
    if not storage.is_remote(uri) and not os.path.isfile(path):
        raise MissingArtifact(f"The manifest {uri} must be a regular file; there is none.")
    return parquet.ParquetFile(filesystem.open_input_file(path))


def _holds_images(kind: pa.DataType) -> bool:
    """Bytes, or a struct with a field `bytes`."""
    if pa.types.is_struct(kind):
        return "bytes" in _field_names(kind)
    return _is_binary(kind)


def _has_usable_fields(kind: pa.DataType) -> bool:
    """Whether an image struct's fields have suitable types; a field is null if every row is blank."""
    if not pa.types.is_struct(kind):
        return True
    fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    content, path = fields.get("bytes", pa.null()), fields.get("path", pa.null())
    return (pa.types.is_null(content) or _is_binary(content)) and (pa.types.is_null(path) or _is_text(path))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _names_to_read(fields: list[pa.Field], inline: pa.Field | None) -> list[str]:
    """The flat columns without the images' bytes, but with their paths."""
    names = [field.name for field in fields if not pa.types.is_nested(field.type) and field is not inline]
    return names if inline is None or "path" not in _field_names(inline.type) else [*names, "image.path"]


def _field_names(kind: pa.DataType) -> list[str]:
    return [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The class names of each integer column that Hugging Face's metadata declares as ClassLabel."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _plain(field: pa.Field, column: pa.ChunkedArray, class_names: list[str] | None) -> list[Any]:
    """Values of a column as text, int, float, bool or None."""
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        column, kind = column.cast(kind.storage_type), kind.storage_type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if class_names is not None and pa.types.is_integer(kind):
        known = range(len(class_names))
        return [class_names[value] if value in known else None for value in column.to_pylist()]
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = column.cast(pa.float64())
        values = compute.if_else(compute.is_nan(numbers), None, numbers).to_pylist()
        return [_number_text(value) for value in values] if field.name in NAMED else list(values)
    if field.name not in NAMED and pa.types.is_boolean(kind):
        return list(column.to_pylist())
    if field.name not in NAMED and pa.types.is_integer(kind):
        return list(column.cast(pa.int64()).to_pylist())
    return list(column.cast(pa.string()).to_pylist())


def _number_text(value: float | None) -> str | None:
    """pandas converts integers to floats if one is missing, so 7.0 means class 7."""
    if value is None:
        return None
    return str(int(value)) if value.is_integer() else repr(value)


def _paths(table: pa.Table) -> list[str | None]:
    if "image" not in table.column_names:
        return []
    return list(compute.struct_field(table["image"], "path").cast(pa.string()).to_pylist())


class _OpenTable:
    """An open Parquet file, and the row group of each row."""

    def __init__(self, uri: str) -> None:
        self.file = open_parquet(uri)
        metadata = self.file.metadata
        self.starts = [0]
        for group in range(metadata.num_row_groups):
            self.starts.append(self.starts[-1] + metadata.row_group(group).num_rows)

    def group_of(self, row: int) -> int:
        return bisect_right(self.starts, row) - 1

    def images(self, group: int) -> pa.ChunkedArray:
        metadata = self.file.metadata.row_group(group)
        columns = (metadata.column(i) for i in range(metadata.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == "image")
        if size > _GROUP_BYTES:
            raise Refused(
                "too many bytes",
                f"row group {group} holds {size} bytes of images, more than {_GROUP_BYTES}; write the table "
                "with smaller ones, such as row_group_size=100",
            )
        return self.file.read_row_group(group, columns=["image"])["image"]


class _GroupCache:
    """Cache of recent image row groups, up to a size: an ingest reads by class, not in the file's order."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.lock = threading.Lock()
        self.groups: OrderedDict[tuple[Any, int], pa.ChunkedArray] = OrderedDict()
        self.table: tuple[Any, _OpenTable] | None = None

    def image(self, table: ParquetTable, row: int) -> Any:
        with self.lock:
            version = self._version(table.uri)
            if self.table is None or self.table[0] != version:
                self.table = (version, _OpenTable(table.uri))
                self.groups.clear()
            opened = self.table[1]
            group = opened.group_of(row)
            key = (version, group)
            if key not in self.groups:
                self.groups[key] = opened.images(group)
                while len(self.groups) > 1 and sum(g.nbytes for g in self.groups.values()) > self.max_bytes:
                    self.groups.popitem(last=False)
            self.groups.move_to_end(key)
            return self.groups[key][row - opened.starts[group]].as_py()

    def clear(self) -> None:
        with self.lock:
            self.table = None
            self.groups.clear()

    def _version(self, uri: str) -> tuple[Any, ...]:
        if storage.is_remote(uri):
            return (os.getpid(), uri)
        status = os.stat(storage.resolve(uri))
        return (os.getpid(), uri, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


_cache = _GroupCache(_CACHE_BYTES)

"""The columns of items as fields of a Milvus collection: a table of items in, typed fields and rows out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import compute

from dml.data.schema import IMAGE, POSITION, dataset_schema, items_schema
from dml.errors import InvalidData
from dml.refs import DatasetRef, EmbeddingsRef
from dml.retrieval.filters.columns import Kind, kind_of
from dml.retrieval.filters.times import times_of

MAX_TEXT_BYTES = 65_535
"""Milvus' own limit."""
_TYPES = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}


@dataclass(frozen=True)
class MilvusColumn:
    """A column of the items, and its field in a collection; a `Column` that a filter is checked against.

    Which values there are only Milvus knows, so nothing is refused because no item has it.
    """

    name: str
    field: str
    type: pa.DataType
    time_type: pa.TimestampType | None = None
    """Of a text column of times, which has a second field of integers; None: it is not."""

    @property
    def time_field(self) -> str:
        """The field of the times as integers."""
        return f"{self.field}_time"

    @property
    def kind(self) -> Kind:
        return kind_of(self.type)

    # A distance passes the check, and is refused with its reason.
    holds_locations = True
    limits = (0.0, 0.0)

    def example(self, unlike: str) -> str:
        return "" if self.time_type is None else "2024-03-01"

    def has(self, values: Sequence[bool | int | float | str]) -> list[bool]:
        return [True] * len(values)

    def near(self, value: int | float | str) -> tuple[list[int] | list[float] | list[str], int]:
        return [], 0


class MilvusColumns(Mapping[str, MilvusColumn]):
    """The columns of a collection's items, in order.

    Fields are numbered, so that no column's name is a word of Milvus' language.

    Args:
        types: column to "string", "int64", "double" or "bool".
        times: column to the type of its times, as of `times_of`.

    Example:
        >>> columns = MilvusColumns({"id": "string", "label": "string", "in": "int64"})
        >>> [column.field for column in columns.values()]
        ['id', 'c1_label', 'c2_in']
    """

    def __init__(self, types: Mapping[str, str], times: Mapping[str, pa.TimestampType] | None = None) -> None:
        self._columns = {
            name: MilvusColumn(name, _field(number, name), _TYPES[kind], (times or {}).get(name))
            for number, (name, kind) in enumerate(types.items())
        }

    def __getitem__(self, name: str) -> MilvusColumn:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def to_json(self) -> dict[str, list[str | None]]:
        """Column to its type, and the unit and zone of its times."""
        return {
            column.name: [
                str(column.type),
                *([] if column.time_type is None else [column.time_type.unit, column.time_type.tz]),
            ]
            for column in self._columns.values()
        }

    @classmethod
    def from_json(cls, described: Mapping[str, Sequence[str | None]]) -> "MilvusColumns":
        """What `to_json` described; raises ValueError, KeyError or TypeError for what it did not."""
        times = {name: pa.timestamp(each[1], each[2]) for name, each in described.items() if len(each) > 1}
        return cls(
            {name: str(each[0]).replace("float64", "double") for name, each in described.items()}, times
        )


def _field(number: int, column: str) -> str:
    return column if column == "id" else f"c{number}_{re.sub('[^A-Za-z0-9_]', '_', column)[:64]}"


def types_of(embeddings: EmbeddingsRef) -> dict[str, str]:
    """The columns of a table's items, in the four types that attributes have."""
    items = embeddings.items
    schema = dataset_schema if isinstance(items, DatasetRef) else items_schema
    columns = {field.name: str(field.type) for field in schema(items.attributes) if field.name != IMAGE}
    return {
        **{name: "int64" if kind == "int32" else kind for name, kind in columns.items()},
        POSITION: "int64",
    }


def columns_of(embeddings: EmbeddingsRef, items: pa.Table) -> MilvusColumns:
    """The columns of a table's items, with the types of those whose texts are times."""
    types = types_of(embeddings)
    texts = [name for name, kind in types.items() if kind == "string" and name != "id"]
    times = {name: times_of(items[name]) for name in texts if items[name].null_count < len(items)}
    return MilvusColumns(types, {name: column.type for name, column in times.items() if column is not None})


def rows_of(items: pa.Table, columns: MilvusColumns) -> list[dict[str, Any]]:
    """Items as Milvus takes them: null for what is missing.

    Raises:
        InvalidData: a value that Milvus cannot hold.
    """
    fields: dict[str, list[Any]] = {}
    for name, column in columns.items():
        values = items[name].cast(column.type)
        fields[column.field] = _plain_values(name, values)
        if column.time_type is not None:
            fields[column.time_field] = _times(name, values, column.time_type)
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


def _times(name: str, texts: pa.ChunkedArray, type_: pa.TimestampType) -> list[int | None]:
    """Times as integers in the unit of their type; None where the text is missing."""
    missing = compute.fill_null(compute.equal(texts, ""), True)
    filled = compute.if_else(missing, pa.scalar(None, texts.type), texts)
    try:
        values: list[int | None] = filled.cast(type_).cast(pa.int64()).to_pylist()
    except pa.ArrowInvalid as error:
        raise InvalidData(
            f"Column {name!r} holds times; {str(error).splitlines()[0]}. Write them alike, or load into "
            "another."
        ) from error
    return values


def _plain_values(name: str, column: pa.ChunkedArray) -> list[Any]:
    """The values of a column, None for NaN and empty text."""
    if pa.types.is_floating(column.type):
        if compute.any(compute.is_inf(column)).as_py():
            raise InvalidData(f"Milvus holds finite numbers; column {name!r} has infinity. Make it missing.")
        column = compute.if_else(compute.is_nan(column), None, column)
    elif pa.types.is_string(column.type):
        longest = compute.max(compute.binary_length(column)).as_py() or 0
        if longest > MAX_TEXT_BYTES:
            raise InvalidData(
                f"Milvus holds texts of at most {MAX_TEXT_BYTES} bytes; column {name!r} has one of "
                f"{longest}. Shorten it."
            )
        column = compute.if_else(compute.equal(column, ""), None, column)
    values: list[Any] = column.to_pylist()
    return values

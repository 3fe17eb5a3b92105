"""What a filter is checked against: the items' columns, their types and which values there are."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dml.retrieval.filters.locations import locations_in_text
from dml.retrieval.filters.times import times_of

Kind: TypeAlias = Literal["text", "integer", "number", "boolean", "other"]
_NEAREST, _COMPARED = 5, 10_000


class Column(Protocol):
    """What a check asks about a column; an index of attributes answers without reading all rows."""

    @property
    def kind(self) -> Kind:
        """What the column holds."""

    @property
    def time_type(self) -> pa.TimestampType | None:
        """The type of a text column's times, as of `times_of`; None: they are no times."""

    @property
    def holds_locations(self) -> bool:
        """Whether the texts are locations, as of `locations_in_text`."""

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the largest number; (inf, -inf) where there is none."""

    def example(self, unlike: str) -> str:
        """A text that the column holds and that does not match this regular expression, else any; empty where
        it holds none."""

    def has(self, values: Sequence[bool | int | float | str]) -> list[bool]:
        """Whether some item has each of these values, which are of the column's type."""

    def near(self, value: int | float | str) -> tuple[list[Any], int]:
        """Values to name where no item has this one, at most 10,000 texts or the nearest numbers in ascending
        order; and how many different values there are."""


Columns: TypeAlias = Mapping[str, Column]


class ItemColumns(Mapping[str, "ItemColumn"]):
    """The columns of a table of items, each read where a filter asks for it."""

    def __init__(self, items: pa.Table) -> None:
        self._table = items
        self._read: dict[str, ItemColumn] = {}

    def __getitem__(self, name: str) -> "ItemColumn":
        if name not in self._read:
            self._read[name] = ItemColumn(self._table[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)


class ItemColumn:
    """A column as Arrow holds it; a `Column`."""

    def __init__(self, values: pa.ChunkedArray) -> None:
        self.values = values

    @property
    def kind(self) -> Kind:
        return kind_of(self.values.type)

    @cached_property
    def times(self) -> pa.ChunkedArray | None:
        """(N,) timestamps; None: they are no times."""
        return times_of(self.values) if self.kind == "text" else None

    @property
    def time_type(self) -> pa.TimestampType | None:
        return None if self.times is None else self.times.type

    @cached_property
    def holds_locations(self) -> bool:
        return self.kind == "text" and locations_in_text(self.values) is not None

    @cached_property
    def limits(self) -> tuple[float, float]:
        if self.kind not in ("integer", "number"):
            return (float("inf"), float("-inf"))
        numbers = pc.drop_null(self.values)
        if self.kind == "number":
            numbers = pc.filter(numbers, pc.invert(pc.is_nan(numbers)))
        if not len(numbers):
            return (float("inf"), float("-inf"))
        limits = pc.min_max(numbers)
        return float(limits["min"].as_py()), float(limits["max"].as_py())

    def example(self, unlike: str) -> str:
        if self.kind != "text":
            return ""
        texts = pc.filter(self.values, pc.not_equal(self.values, ""))
        others = pc.filter(texts, pc.invert(pc.match_substring_regex(texts, unlike)))
        return next((str(text) for column in (others, texts) for text in column.slice(0, 1)), "")

    def has(self, values: Sequence[bool | int | float | str]) -> list[bool]:
        if self.kind == "number":
            return list(np.isin(np.array(values), self.values.to_numpy()).tolist())
        kind = pa.int64() if self.kind == "integer" else self.values.type
        wanted = pa.array(values, kind)
        present = pc.is_in(wanted, value_set=pc.unique(pc.cast(self.values, kind)))
        return list(present.to_pylist())

    def near(self, value: int | float | str) -> tuple[list[Any], int]:
        values = pc.unique(self.values).drop_null()
        if isinstance(value, str):
            values = pc.filter(values, pc.not_equal(values, ""))
            return values.slice(0, _COMPARED).to_pylist(), len(values)
        numbers = values.to_numpy(zero_copy_only=False)
        numbers = np.unique(numbers[~np.isnan(numbers)])  # -0.0 is 0.0
        distances = np.abs(numbers.astype(np.float64) - float(value))
        return sorted(numbers[np.argsort(distances, kind="stable")[:_NEAREST]].tolist()), len(numbers)


def kind_of(type_: pa.DataType) -> Kind:
    """What a column of this Arrow type holds."""
    types = pa.types
    if types.is_string(type_) or types.is_large_string(type_):
        return "text"
    if types.is_boolean(type_):
        return "boolean"
    if types.is_integer(type_):
        return "integer"
    is_number = types.is_floating(type_) and not types.is_float16(type_)  # of which Arrow compares none
    return "number" if is_number else "other"

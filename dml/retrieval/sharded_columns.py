"""The columns of an index in shards, to check filters against: each shard's summary in, one column out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa

from dml.retrieval.filters.columns import Columns, Kind
from dml.retrieval.filters.tree import And, Between, Compare, Filter, Not, Or, Within


class Shards(Protocol):
    """All shards of an index, called at once."""

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Each shard's result of a method of `Shard`, in order."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class ColumnSummary:
    """A column in one shard."""

    kind: Kind
    time_type: pa.TimestampType | None
    holds_locations: bool
    limits: tuple[float, float]
    has_texts: bool
    """Whether some item has a text there."""


class LocalColumns:
    """The columns of one part of an index, by the methods that `ShardedColumns` calls."""

    def __init__(self, columns: Columns) -> None:
        self._here = columns

    def columns(self) -> list[str]:
        """The names of the items' columns."""
        return list(self._here)

    def summary(self, column: str) -> ColumnSummary:
        """The column in this part."""
        here = self._here[column]
        has_texts = bool(here.example(""))
        return ColumnSummary(here.kind, here.time_type, here.holds_locations, here.limits, has_texts)

    def example(self, column: str, unlike: str) -> str:
        """A text that the column holds."""
        return self._here[column].example(unlike)

    def has(self, column: str, values: Sequence[Any]) -> list[bool]:
        """Whether some item has each of these values."""
        return self._here[column].has(values)

    def near(self, column: str, value: Any) -> tuple[list[Any], int]:
        """Values to name where no item has this one."""
        return self._here[column].near(value)

    def local(self, where: Filter | None) -> Filter | None:
        """A checked filter for this part, in which a column of times may have no text at all.

        Then no comparison by order holds, as little as an equality with any text.
        """
        match where:
            case And() | Or():
                return where.model_copy(update={"filters": tuple(map(self.local, where.filters))})
            case Not():
                return Not(filter=self.local(where.filter))
            case Compare(operator="=" | "!=") | None:
                return where
            case Compare(column=column) | Between(column=column) | Within(column=str(column)):
                here = self._here[column]
                if here.kind == "text" and not here.example(""):
                    return Compare(column=column, operator="=", value="none")
        return where


class ShardedColumn:
    """A column of all shards together; a `Column` that filters are checked against."""

    def __init__(self, name: str, shards: Shards) -> None:
        self._name, self._shards = name, shards

    @cached_property
    def _summaries(self) -> list[ColumnSummary]:
        summaries: list[ColumnSummary] = self._shards.call("summary", self._name)
        return summaries

    @property
    def _with_texts(self) -> list[ColumnSummary]:
        return [summary for summary in self._summaries if summary.has_texts] or self._summaries[:1]

    @property
    def kind(self) -> Kind:
        return self._summaries[0].kind

    @property
    def time_type(self) -> pa.TimestampType | None:
        kinds = {summary.time_type for summary in self._with_texts}
        if None in kinds or len({kind.tz for kind in kinds if kind is not None}) != 1:
            return None
        return max((kind for kind in kinds if kind is not None), key=lambda kind: str(kind.unit) == "ns")

    @property
    def holds_locations(self) -> bool:
        return all(summary.holds_locations for summary in self._with_texts)

    @property
    def limits(self) -> tuple[float, float]:
        limits = [summary.limits for summary in self._summaries]
        return min(low for low, _ in limits), max(high for _, high in limits)

    def example(self, unlike: str) -> str:
        texts = [text for text in self._shards.call("example", self._name, unlike) if text]
        return next((text for text in texts if not re.search(unlike, text)), texts[0] if texts else "")

    def has(self, values: Sequence[bool | int | float | str]) -> list[bool]:
        present: list[list[bool]] = self._shards.call("has", self._name, list(values))
        return [any(of_value) for of_value in zip(*present, strict=True)]

    def near(self, value: int | float | str) -> tuple[list[int] | list[float] | list[str], int]:
        near = self._shards.call("near", self._name, value)
        values = list(dict.fromkeys(other for few, _ in near for other in few))
        if isinstance(value, str):
            return values, max(len(values), *(number for _, number in near))
        nearest = sorted(values, key=lambda other: abs(other - value))[: max(len(few) for few, _ in near)]
        return sorted(nearest), max(len(values), *(number for _, number in near))


class ShardedColumns(Mapping[str, ShardedColumn]):
    """The columns of an index in shards; a column is summarised when a filter names it."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._columns: dict[str, ShardedColumn] = {}

    @cached_property
    def _names(self) -> list[str]:
        names: list[str] = self._shards.call("columns")[0]
        return names

    def __getitem__(self, name: str) -> ShardedColumn:
        if name not in self._names:
            raise KeyError(name)
        return self._columns.setdefault(name, ShardedColumn(name, self._shards))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

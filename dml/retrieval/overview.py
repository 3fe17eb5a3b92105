"""What the columns of items hold, for a form of filters: an index or a table in, types and counts out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pyarrow import compute

from dml.retrieval.filters.columns import Columns
from dml.retrieval.search import Index

Holds = Literal["text", "integer", "number", "boolean", "time", "location"]

_LEFT_OUT = {"position"}


@dataclass(frozen=True)
class ColumnOverview:
    """One column."""

    name: str
    holds: Holds
    missing: int
    """Items without a value; an empty text is none."""
    distinct: int
    values: list[tuple[Any, int]]
    """The most frequent values and how many items have each, the most frequent first."""
    low: float | str | None
    """Of numbers and times; None: no item has one."""
    high: float | str | None


def column_overviews(index: Index, *, most_values: int = 50) -> list[ColumnOverview]:
    """The columns that filters may name, in their order.

    Args:
        index: open; it is read whole, so keep the result.
        most_values: of each column.

    Raises:
        InvalidSetting: the shards of the index are held in a cluster.
    """
    table = index.items
    names = [name for name in index.columns if name not in _LEFT_OUT and name in table.column_names]
    return table_overviews(table, index.columns, names, most_values=most_values)


def table_overviews(
    table: pa.Table, columns: Columns, names: Iterable[str], *, most_values: int = 50
) -> list[ColumnOverview]:
    """As `column_overviews`, of some columns of a table.

    Args:
        table: the items.
        columns: of the same items.
        names: of the columns that are wanted; one that no filter can ask for is left out.
        most_values: of each column.
    """
    return [_overview(columns, table, name, most_values) for name in names if columns[name].kind != "other"]


def _overview(columns: Columns, table: pa.Table, name: str, most_values: int) -> ColumnOverview:
    column = columns[name]
    present = compute.drop_null(table[name])
    if column.kind == "text":
        present = compute.filter(present, compute.not_equal(present, ""))
    elif pa.types.is_floating(present.type):
        present = compute.filter(present, compute.invert(compute.is_nan(present)))
    counts = compute.value_counts(present)
    values = counts.field("values") if len(counts) else pa.array([], present.type)
    numbers = counts.field("counts") if len(counts) else pa.array([], pa.int64())
    order = compute.array_sort_indices(numbers, order="descending")[:most_values]
    holds: Holds = column.kind  # type: ignore[assignment]  # "other" was left out
    if column.kind == "text" and column.time_type is not None:
        holds = "time"
    elif column.kind == "text" and column.holds_locations:
        holds = "location"
    has_limits = holds in ("integer", "number", "time") and len(present)
    limits = compute.min_max(present) if has_limits else None
    return ColumnOverview(
        name=name,
        holds=holds,
        missing=len(table) - len(present),
        distinct=len(values),
        values=list(zip(values.take(order).to_pylist(), numbers.take(order).to_pylist(), strict=True)),
        low=None if limits is None else limits["min"].as_py(),
        high=None if limits is None else limits["max"].as_py(),
    )

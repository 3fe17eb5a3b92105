"""Which items satisfy a filter, by plain comparisons of whole columns."""

from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dml.retrieval.filters.check import check
from dml.retrieval.filters.columns import ItemColumn, ItemColumns
from dml.retrieval.filters.locations import distances_km, locations_in_numbers, locations_in_text
from dml.retrieval.filters.times import time_of
from dml.retrieval.filters.tree import And, Between, Compare, Filter, In, IsNull, Not, Or, Within
from dml.retrieval.filters.where import Where

_ORDERED = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def matching_rows(items: pa.Table, where: Where, *, refuse_absent: bool = True) -> NDArray[np.bool_]:
    """Which items satisfy a filter.

    Args:
        items: N rows.
        where: text, a filter, its JSON, or several of these, which must all hold.
        refuse_absent: as of `check`.

    Returns:
        (N,) bool.

    Raises:
        InvalidFilter: it cannot be read, or does not fit the columns.

    Example:
        >>> items = pa.table({"age": [19, 30, None], "region": ["east", "west", "east"]})
        >>> matching_rows(items, "age > 20 or region = 'east'")
        array([ True,  True,  True])
    """
    columns = ItemColumns(items)
    filter = check(where, columns, refuse_absent=refuse_absent)
    return np.ones(len(items), dtype=np.bool_) if filter is None else evaluate(filter, columns)


def evaluate(filter: Filter, columns: ItemColumns) -> NDArray[np.bool_]:
    """(N,) whether each item satisfies a filter that `check` returned."""
    match filter:
        case And(filters=filters):
            return reduce(np.logical_and, (evaluate(child, columns) for child in filters))
        case Or(filters=filters):
            return reduce(np.logical_or, (evaluate(child, columns) for child in filters))
        case Not():
            return ~evaluate(filter.filter, columns)
        case Within():
            return _within(columns, filter)
        case Compare(operator="="):
            return _is_in(columns[filter.column], (filter.value,))
        case Compare(operator="!="):
            return ~_is_in(columns[filter.column], (filter.value,))
        case Compare():
            return _ordered(columns[filter.column], filter.operator, filter.value)
        case Between():
            column = columns[filter.column]
            return _ordered(column, ">=", filter.low) & _ordered(column, "<=", filter.high)
        case In():
            return _is_in(columns[filter.column], filter.values)
        case IsNull():
            return _is_null(columns[filter.column])


def _is_in(column: ItemColumn, values: tuple[bool | int | float | str, ...]) -> NDArray[np.bool_]:
    if column.kind == "number":
        return np.isin(column.values.to_numpy(), values)
    kind = pa.int64() if column.kind == "integer" else column.values.type
    return _mask(pc.is_in(pc.cast(column.values, kind), value_set=pa.array(values, kind), skip_nulls=True))


def _ordered(column: ItemColumn, operator: str, value: bool | int | float | str) -> NDArray[np.bool_]:
    if column.times is not None:
        return _mask(_ORDERED[operator](column.times, time_of(str(value), column.times.type)))
    kind = pa.int64() if column.kind == "integer" else pa.float64()
    return _mask(_ORDERED[operator](pc.cast(column.values, kind), pa.scalar(value, kind)))


def _is_null(column: ItemColumn) -> NDArray[np.bool_]:
    missing = _mask(pc.is_null(column.values, nan_is_null=True))
    return missing | _mask(pc.equal(column.values, "")) if column.kind == "text" else missing


def _within(columns: ItemColumns, filter: Within) -> NDArray[np.bool_]:
    values = [columns[name].values for name in filter.columns]
    locations = locations_in_text(*values) if len(values) == 1 else locations_in_numbers(*values)
    assert locations is not None, "the check refuses other columns"
    near: NDArray[np.bool_] = distances_km(*locations, filter.latitude, filter.longitude) <= filter.radius_km
    return near


def _mask(truth: pa.ChunkedArray) -> NDArray[np.bool_]:
    """A missing truth is false."""
    mask: NDArray[np.bool_] = pc.fill_null(truth, False).to_numpy()
    return mask

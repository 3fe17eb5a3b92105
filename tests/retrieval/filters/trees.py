"""Random items, random filters of them, and what a filter means: a plain loop over rows as dictionaries."""

import math
import operator
from datetime import datetime
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from dml.retrieval.filters import And, Between, Compare, Filter, In, IsNull, Not, Or, Within

Row = dict[str, Any]
TYPES = {
    "text": pa.string(),
    "number": pa.float64(),
    "whole": pa.int64(),
    "truth": pa.bool_(),
    "moment": pa.string(),
    "place": pa.string(),
    "lat": pa.float64(),
    "lon": pa.float64(),
}
COMPARE = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

# Few different ones, so that rows agree; with what the language itself uses.
texts = st.text(st.sampled_from("ab='\"` ()|\\,;ü\0\n"), min_size=1, max_size=3)
numbers = st.sampled_from([-1e300, -2.5, -1.0, -0.0, 0.0, 0.1, 1.0, 3.0, 1e-300])
wholes = st.sampled_from([-(2**63), -3, 0, 1, 7, 2**53, 2**53 + 1, 2**63 - 1])
moments = st.datetimes(datetime(1970, 1, 1), datetime(1970, 1, 3)).map(datetime.isoformat)
latitudes = st.sampled_from([-90.0, -45.5, 0.0, 30.2, 89.9, 90.0])
longitudes = st.sampled_from([-180.0, -179.9, 0.0, 120.1, 179.9, 180.0])
places = st.builds("{},{}".format, latitudes, longitudes)
rows_of_items = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.just("") | texts,
            "number": st.none() | st.just(float("nan")) | numbers,
            "whole": st.none() | wholes,
            "truth": st.none() | st.booleans(),
            "moment": st.none() | st.just("") | moments,
            "place": st.none() | st.just("") | places,
            "lat": st.none() | st.just(float("nan")) | latitudes,
            "lon": st.none() | longitudes,
        }
    ),
    min_size=1,
    max_size=12,
)


def table(rows: list[Row]) -> pa.Table:
    """The rows as an index holds items, in two chunks."""
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()}
    return pa.concat_tables([pa.table(columns).slice(0, 1), pa.table(columns).slice(1)])


@st.composite
def _leaves(draw: Any, rows: list[Row]) -> Filter:
    kind = draw(st.sampled_from(["compare", "order", "between", "in", "is_null", "within"]))
    if kind == "within":
        column = draw(st.sampled_from(["place", ("lat", "lon")]))
        radius = draw(st.sampled_from([0.1, 12.0, 600.0, 9_999.0, 10_050.0, 19_999.0, 30_000.0]))
        return Within(column=column, latitude=draw(latitudes), longitude=draw(longitudes), radius_km=radius)
    if kind == "is_null":
        return IsNull(column=draw(st.sampled_from(list(TYPES))))
    if kind in ("order", "between"):
        column = draw(st.sampled_from(["number", "whole", "moment"]))
        values = moments if column == "moment" else numbers.filter(lambda x: abs(x) < 2**62) | wholes
        if kind == "order":
            return Compare(
                column=column, operator=draw(st.sampled_from(["<", "<=", ">", ">="])), value=draw(values)
            )
        low, high = sorted([draw(values), draw(values)])
        return Between(column=column, low=low, high=high)
    column = draw(st.sampled_from(["text", "number", "whole", "truth", "moment"]))
    held = [row[column] for row in rows if not is_missing(row[column])]
    others = {
        "text": texts,
        "number": numbers | wholes,
        "whole": wholes,
        "truth": st.booleans(),
        "moment": moments,
    }[column]
    values = st.sampled_from(held) | others if held else others
    if kind == "compare":
        return Compare(column=column, operator=draw(st.sampled_from(["=", "!="])), value=draw(values))
    return In(column=column, values=tuple(draw(st.lists(values, min_size=1, max_size=4))))


def filters_of(rows: list[Row]) -> st.SearchStrategy[Filter]:
    """Filters of every kind; their values may be those that no row has."""

    def larger(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return (
            st.builds(lambda below: And(filters=below), several)
            | st.builds(lambda below: Or(filters=below), several)
            | st.builds(lambda below: Not(filter=below), inner)
        )

    return st.recursive(_leaves(rows), larger, max_leaves=6)


def is_missing(value: Any) -> bool:
    return value is None or value == "" or value != value


def is_satisfied(row: Row, filter: Filter) -> bool:
    """What the filter says of one row, in plain Python."""
    match filter:
        case And():
            return all(is_satisfied(row, each) for each in filter.filters)
        case Or():
            return any(is_satisfied(row, each) for each in filter.filters)
        case Not():
            return not is_satisfied(row, filter.filter)
        case IsNull():
            return is_missing(row[filter.column])
        case Within():
            return _is_within(row, filter)
    value = row[filter.column]
    if isinstance(filter, Compare) and filter.operator == "!=":
        return is_missing(value) or value != filter.value
    if is_missing(value):
        return False
    match filter:
        case Compare():
            return COMPARE[filter.operator](_comparable(value), _comparable(filter.value))
        case Between():
            low, high = _comparable(filter.low), _comparable(filter.high)
            return low <= _comparable(value) <= high
        case In():
            return value in filter.values
    raise AssertionError(filter)


def _comparable(value: Any) -> Any:
    return datetime.fromisoformat(value) if isinstance(value, str) and value[:4].isdigit() else value


def _is_within(row: Row, filter: Within) -> bool:
    held = [row[name] for name in filter.columns]
    if any(map(is_missing, held)):
        return False
    north, east = map(float, held[0].split(",")) if len(held) == 1 else held
    return haversine_km(north, east, filter.latitude, filter.longitude) <= filter.radius_km


def haversine_km(latitude: float, longitude: float, to_latitude: float, to_longitude: float) -> float:
    """The textbook's formula."""
    north, to_north = math.radians(latitude), math.radians(to_latitude)
    east = math.radians(longitude - to_longitude)
    chord = math.sin((north - to_north) / 2) ** 2
    chord += math.cos(north) * math.cos(to_north) * math.sin(east / 2) ** 2
    return 2 * 6371.0088 * math.asin(min(1.0, math.sqrt(chord)))

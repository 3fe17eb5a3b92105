"""Filters in Python: `(col("age") > 20) & col("region").isin(["east", "west"])`."""

from collections.abc import Callable, Iterable
from operator import and_, or_
from typing import Any

from dml.errors import InvalidFilter
from dml.retrieval.filters.tree import Between, Compare, Filter, In, IsNull, Node, Operator, Within, make_node


class Col:
    """A column to compare; alone it is a truth value, as in `~col("vip")`."""

    def __init__(self, name: str, longitude: str | None = None) -> None:
        self._name, self._longitude = name, longitude

    def __repr__(self) -> str:
        more = "" if self._longitude is None else f", {self._longitude!r}"
        return f"col({self._name!r}{more})"

    def __eq__(self, value: object) -> Compare:  # type: ignore[override]
        return self._compare("=", value)

    def __ne__(self, value: object) -> Compare:  # type: ignore[override]
        return self._compare("!=", value)

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, value: Any) -> Compare:
        return self._compare("<", value)

    def __le__(self, value: Any) -> Compare:
        return self._compare("<=", value)

    def __gt__(self, value: Any) -> Compare:
        return self._compare(">", value)

    def __ge__(self, value: Any) -> Compare:
        return self._compare(">=", value)

    def between(self, low: Any, high: Any) -> Between:
        """The value is from low to high, both included."""
        return make_node(Between, column=self._name, low=low, high=high)

    def isin(self, values: Iterable[Any]) -> In:
        """The value is one of these."""
        if isinstance(values, str):
            raise InvalidFilter(
                f"isin must have a list of values; got the text {values!r}. Pass [{values!r}]."
            )
        return make_node(In, column=self._name, values=tuple(values))

    def is_null(self) -> IsNull:
        """The value is missing: null, NaN or empty text."""
        return make_node(IsNull, column=self._name)

    def is_true(self) -> Compare:
        """The truth value is true."""
        return self._compare("=", True)

    def within(self, latitude: float, longitude: float, radius_km: float) -> Within:
        """The location is at most so many kilometres from this point, in degrees."""
        column = self._name if self._longitude is None else (self._name, self._longitude)
        return make_node(Within, column=column, latitude=latitude, longitude=longitude, radius_km=radius_km)

    def __and__(self, other: Any) -> Filter:
        return _joined(self, other, and_)

    def __or__(self, other: Any) -> Filter:
        return _joined(self, other, or_)

    def __rand__(self, other: Any) -> Filter:
        return _joined(other, self, and_)

    def __ror__(self, other: Any) -> Filter:
        return _joined(other, self, or_)

    def __invert__(self) -> Filter:
        return ~self.is_true()

    def __bool__(self) -> bool:
        raise TypeError(
            "A column has no truth value. Join filters by &, | and ~, and bracket each comparison."
        )

    def _compare(self, operator: Operator, value: object) -> Compare:
        return make_node(Compare, column=self._name, operator=operator, value=value)


def col(name: str, longitude: str | None = None) -> Col:
    """A column of the items, to compare.

    Args:
        name: the column; of two that hold a location as numbers, the latitude.
        longitude: the other of the two; for `within`.

    Example:
        >>> from datetime import date
        >>> print((col("age") > 20) & ~col("vip") & (col("seen") >= date(2026, 1, 1)))
        age > 20 and not vip = true and seen >= '2026-01-01'
        >>> print(col("lat", "lon").within(30.2, 120.1, 5))
        within(lat, lon, 30.2, 120.1, 5.0 km)
    """
    return Col(name, longitude)


def _joined(left: Any, right: Any, join: Callable[[Any, Any], Filter]) -> Filter:
    nodes = [side.is_true() if isinstance(side, Col) else side for side in (left, right)]
    for node in nodes:
        if not isinstance(node, Node):
            raise TypeError(f"Filters are joined with filters; got {node!r}. Bracket each comparison.")
    return join(*nodes)

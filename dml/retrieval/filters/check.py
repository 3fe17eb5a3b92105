"""Checks a filter against the items' columns: names, types, and values that no item has."""

import logging
import math
import re
from collections.abc import Sequence
from typing import NoReturn

import pyarrow as pa
from lark import Token

from dml.errors import InvalidFilter, did_you_mean
from dml.numbers import is_number
from dml.retrieval.filters.columns import Column, Columns
from dml.retrieval.filters.locations import LOCATION
from dml.retrieval.filters.parse import Parsed
from dml.retrieval.filters.text import pointed_at, write_name, write_value
from dml.retrieval.filters.times import TIME, time_of
from dml.retrieval.filters.tree import (
    And,
    Between,
    Compare,
    Filter,
    In,
    IsNull,
    Not,
    Or,
    Value,
    Within,
)
from dml.retrieval.filters.where import Where, all_of, read_filters

logger = logging.getLogger(__name__)

_HOLDS = {
    "text": "text",
    "integer": "whole numbers",
    "number": "numbers",
    "boolean": "true or false",
    "other": "what no filter can ask for",
}
_ZONE = re.compile(r"(?<=\d)(Z|[+-]\d\d(:?\d\d)?)$")
_INT64 = 2**63
_SHOWN_VALUES, _SHOWN_TEXT = 5, 60


def check(where: Where, columns: Columns, *, refuse_absent: bool = True) -> Filter | None:
    """One filter of all that must hold, whose values are of the columns' types.

    Whole numbers stay exact: `year > 2.5` in a column of whole numbers becomes `year > 2`. Lists are sorted
    and name each value once, so that the text of the result is a key for caches.

    Args:
        where: text, a filter, its JSON, or several of these.
        columns: the items' columns.
        refuse_absent: refuse `=` and `in` with a value that no item has: as a rule it is misspelt. Under `!=`
            and `not` it is told of in the log, and excludes nothing. False: other items may have it, such as
            those of another shard.

    Returns:
        None: every item is wanted.

    Raises:
        InvalidFilter: it cannot be read, or does not fit the columns.
    """
    return all_of(
        [
            _Check(columns, text, refuse_absent).checked(parsed, negated=False)
            for parsed, text in read_filters(where)
        ]
    )


class _Check:
    """The check of one filter; errors point into its text where it has one."""

    def __init__(self, columns: Columns, text: str, refuse_absent: bool) -> None:
        self._columns, self._text, self._refuse_absent = columns, text, refuse_absent

    def checked(self, parsed: Parsed, *, negated: bool) -> Filter:
        """The filter with values of the columns' types; negated: it stands under an odd number of `not`."""
        filter = parsed.filter
        match filter:
            case And() | Or():
                children = _children(parsed, filter.filters)
                return type(filter)(filters=tuple(self.checked(child, negated=negated) for child in children))
            case Not():
                (child,) = _children(parsed, (filter.filter,))
                return Not(filter=self.checked(child, negated=not negated))
            case Within():
                self._check_within(filter, parsed)
                return filter
        column = self._column(filter.column, _at(parsed.columns, 0))
        if isinstance(filter, IsNull):
            return filter
        if column.kind == "other":
            self._refuse(
                f"{filter.column} must hold text, numbers or truth values; it does not.",
                _at(parsed.columns, 0),
            )
        if isinstance(filter, Between):
            return self._between(filter, column, parsed)
        if isinstance(filter, Compare) and filter.operator not in ("=", "!="):
            value = self._ordered(filter, filter.operator, filter.value, column, _at(parsed.values, 0))
            return Compare(column=filter.column, operator=filter.operator, value=value)
        return self._among(filter, column, parsed, negated=negated)

    def _among(self, filter: Compare | In, column: Column, parsed: Parsed, *, negated: bool) -> Filter:
        name, given = write_name(filter.column), filter.values if isinstance(filter, In) else (filter.value,)
        values = [
            self._value(name, value, column, _at(parsed.values, n), is_bare_column=parsed.is_bare_column)
            for n, value in enumerate(given)
        ]
        if column.kind != "boolean" and self._refuse_absent:
            is_negative = negated != (isinstance(filter, Compare) and filter.operator == "!=")
            present = column.has(values)
            if not all(present):
                n = present.index(False)
                self._report_absent(name, column, values[n], _at(parsed.values, n), is_negative=is_negative)
        if isinstance(filter, In):
            return In(column=filter.column, values=tuple(sorted(set(values))))
        return Compare(column=filter.column, operator=filter.operator, value=values[0])

    def _between(self, filter: Between, column: Column, parsed: Parsed) -> Between:
        low = self._ordered(filter, ">=", filter.low, column, _at(parsed.values, 0))
        high = self._ordered(filter, "<=", filter.high, column, _at(parsed.values, 1))
        kind = column.time_type
        if kind is None:
            is_reversed = filter.low > filter.high  # type: ignore[operator]
        else:
            is_reversed = time_of(str(low), kind).value > time_of(str(high), kind).value  # type: ignore[union-attr]
        if is_reversed:
            self._refuse(
                f"between must name the lower bound first; got {write_value(filter.low)} and "
                f"{write_value(filter.high)}.",
                _at(parsed.values, 0),
            )
        return Between(column=filter.column, low=low, high=high)

    def _ordered(
        self, filter: Compare | Between, operator: str, value: Value, column: Column, token: Token | None
    ) -> Value:
        """A bound, of the column's type; of whole numbers the one that bounds the same."""
        name, kind = write_name(filter.column), column.kind
        if kind == "boolean":
            self._refuse(f"Numbers and times have an order; {name} holds true or false. Write {name}.", token)
        if kind == "text":
            return self._time(name, value, column, token)
        number = self._number(name, value, column, token)
        if kind == "integer":
            # Not as floats, which confuse neighbours beyond 2**53: x > 2.5 is x > 2.
            number = math.ceil(number) if operator in (">=", "<") else math.floor(number)
            self._limit_integer(number, token)
        return number

    def _time(self, name: str, value: Value, column: Column, token: Token | None) -> str:
        kind = column.time_type
        if kind is None:
            example = column.example(unlike=TIME)
            if re.match(TIME, example):
                self._refuse(
                    "The times of a column must all name a zone, or none of them, and their days must exist; "
                    f"those of {name} do not, such as {write_value(example)}. Use =, != or in.",
                    token,
                )
            self._refuse(
                f"Numbers and times have an order; {name} holds text that is neither{_such_as(example)}. "
                "Use =, != or in.",
                token,
            )
        if not isinstance(value, str) or time_of(value, kind) is None:
            self._refuse_time(name, value, column, kind, token)
        return value

    def _refuse_time(
        self, name: str, value: Value, column: Column, kind: pa.TimestampType, token: Token | None
    ) -> NoReturn:
        if not column.example(unlike=""):
            self._refuse(
                f"A column must hold something to be compared by order; {name} is missing in every item. "
                f"Leave it out, or write {name} is null.",
                token,
            )
        got = _written(value, token)
        without_zone = _ZONE.sub("", value) if isinstance(value, str) else value
        if kind.tz is None and without_zone != value and time_of(str(without_zone), kind) is not None:
            self._refuse(
                f"The times of {name} have no zone, so the value must have none; got {got}. Write "
                f"{without_zone}",
                token,
            )
        self._refuse(
            f"{name} holds times, so the value must be one, such as 2024-03-01 or 2024-03-01T12:30, with at "
            f"most six decimals of a second; got {got}.",
            token,
        )

    def _value(
        self, name: str, value: Value, column: Column, token: Token | None, *, is_bare_column: bool
    ) -> Value:
        """A value to be equal to, of the column's type."""
        kind = column.kind
        if is_bare_column and kind != "boolean":
            self._refuse(
                f"A column that stands alone must hold true or false; {name} holds {_HOLDS[kind]}. Compare "
                f"it, or write {name} is not null.",
                token,
            )
        if kind == "boolean":
            if not isinstance(value, bool):
                self._refuse(
                    f"{name} holds true or false; got {_written(value, token)}. Write {name}, or not {name}.",
                    token,
                )
            return value
        if kind == "text":
            if not isinstance(value, str):
                quoted = write_value(_written(value, token))
                self._refuse(
                    f"{name} holds text; got {_written(value, token)}. Write it in single quotes: {quoted}",
                    token,
                )
            if not value:
                self._refuse(
                    f"An empty text is a missing value. Write {name} is null, or is not null.", token
                )
            return value
        number = self._number(name, value, column, token)
        if kind == "integer":
            if number != math.floor(number):
                self._refuse(f"{name} holds whole numbers; got {_written(value, token)}.", token)
            number = int(number)
            self._limit_integer(number, token)
        return number

    def _number(self, name: str, value: Value, column: Column, token: Token | None) -> int | float:
        if isinstance(value, bool | str):
            hint = (
                f" Write it without quotes: {value}"
                if not isinstance(value, bool) and is_number(value)
                else ""
            )
            self._refuse(
                f"{name} holds {_HOLDS[column.kind]}, so the value must be a number; got "
                f"{_written(value, token)}.{hint}",
                token,
            )
        return float(value) if column.kind == "number" else value

    def _limit_integer(self, number: int, token: Token | None) -> None:
        if not -_INT64 <= number < _INT64:
            self._refuse(f"A whole number must fit 64 bits; got {_written(number, token)}.", token)

    def _check_within(self, filter: Within, parsed: Parsed) -> None:
        """Raise InvalidFilter where the columns hold no locations."""
        columns = [self._column(name, _at(parsed.columns, n)) for n, name in enumerate(filter.columns)]
        names, first = [write_name(name) for name in filter.columns], _at(parsed.columns, 0)
        if len(columns) == 1:
            if not columns[0].holds_locations:
                self._refuse(
                    "within must have a text column of locations such as '30.2,120.1', latitude first, in "
                    f"degrees, or two columns of numbers, within(lat, lon, ...); {names[0]} holds "
                    f"{_HOLDS[columns[0].kind]}{_such_as(columns[0].example(unlike=LOCATION))}.",
                    first,
                )
            return
        for n, (limit, what) in enumerate(((90, "latitude"), (180, "longitude"))):
            if columns[n].kind not in ("integer", "number"):
                self._refuse(
                    "within must have two columns of numbers, or one of texts such as '30.2,120.1'; "
                    f"{names[n]} holds {_HOLDS[columns[n].kind]}.",
                    _at(parsed.columns, n),
                )
            low, high = columns[n].limits
            if low < -limit or high > limit:
                self._refuse(
                    f"A column of {what}s must hold degrees from -{limit} to {limit}; {names[n]} holds "
                    f"{low if low < -limit else high}. The latitude comes first.",
                    _at(parsed.columns, n),
                )

    def _column(self, name: str, token: Token | None) -> Column:
        if name not in self._columns:
            self._refuse(
                f"A filter must name one of the columns {', '.join(map(write_name, self._columns))}; got "
                f"{write_name(name[:_SHOWN_TEXT])}.{did_you_mean(name[:_SHOWN_TEXT], self._columns)}",
                token,
            )
        return self._columns[name]

    def _report_absent(
        self, name: str, column: Column, value: Value, token: Token | None, *, is_negative: bool
    ) -> None:
        values, number = column.near(value)
        near = did_you_mean(value[:_SHOWN_TEXT], map(str, values)) if isinstance(value, str) else ""
        shown = sorted(values)[:_SHOWN_VALUES]
        have = ", ".join(write_value(each) for each in shown) or "none"
        more = f", ... ({number} in all)" if number > len(shown) else ""
        message = (
            f"A value must be one that an item has; no item has {name} = {_written(value, token)}. There are "
            f"{have}{more}.{near}"
        )
        if is_negative:
            logger.warning("%s So the filter excludes nothing by it.", message)
        else:
            self._refuse(message, token)

    def _refuse(self, message: str, token: Token | None) -> NoReturn:
        place = "" if token is None else pointed_at(self._text, token.start_pos or 0)
        raise InvalidFilter(message, place)


def _children(parsed: Parsed, filters: Sequence[Filter]) -> Sequence[Parsed]:
    return parsed.children or [Parsed(filter) for filter in filters]


def _at(tokens: Sequence[Token], n: int) -> Token | None:
    """The position of a column or value in the text; None where the filter was not read from text."""
    return tokens[n] if tokens else None


def _written(value: Value, token: Token | None) -> str:
    """A value as it was written: a suffix 0123 keeps its zero."""
    return str(write_value(value) if token is None else token)[:_SHOWN_TEXT]


def _such_as(example: str) -> str:
    return f", such as {write_value(example[:_SHOWN_TEXT])}" if example else ""

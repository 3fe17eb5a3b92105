"""What is known beforehand, as conditions on an item's columns: `script=Greek|Latin`, `year>=2010`."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dml.errors import InvalidSetting

_CONDITION = re.compile(r"^\s*(?P<column>\w+)\s*(?P<operator>!=|>=|<=|=|>|<)\s*(?P<value>.*?)\s*$")
_ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    ">": pc.greater,
    "<": pc.less,
}
_TRUTH = {"true": True, "false": False}


def matching_rows(items: pa.Table, where: Sequence[str]) -> NDArray[np.bool_]:
    """Which items satisfy all conditions.

    Args:
        items: the index's items.
        where: each `column=value`, `column=a|b` (any of them), `column!=...`, or `<`, `<=`, `>`, `>=` on
            numbers. A missing value satisfies nothing but `!=`.

    Returns:
        (N,) bool.

    Raises:
        InvalidSetting: a condition that does not parse, an unknown column, or a value of another type.
    """
    mask = np.ones(len(items), dtype=np.bool_)
    for condition in where:
        mask &= _satisfied(items, condition)
    return mask


def _satisfied(items: pa.Table, condition: str) -> NDArray[np.bool_]:
    parsed = _CONDITION.match(condition)
    if parsed is None:
        raise InvalidSetting(f"A condition must read COLUMN=VALUE (or !=, <, <=, >, >=); got {condition!r}.")
    name, sign, text = parsed["column"], parsed["operator"], parsed["value"]
    if name not in items.column_names:
        raise InvalidSetting(f"A condition must name one of the columns {items.column_names}; got {name!r}.")
    column = items[name]
    try:
        result = _compare(column, name, sign, text, condition)
    except (pa.ArrowInvalid, OverflowError):
        raise InvalidSetting(f"The value must fit the column's {column.type}; got {condition!r}.") from None
    satisfied: NDArray[np.bool_] = result.combine_chunks().fill_null(False).to_numpy(zero_copy_only=False)
    return satisfied


def _compare(column: pa.ChunkedArray, name: str, sign: str, text: str, condition: str) -> pa.ChunkedArray:
    if sign in _ORDERED:
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise InvalidSetting(
                f"{sign} compares numbers; column {name!r} holds {column.type}. Use = or !=."
            )
        return _ORDERED[sign](column, pa.scalar(_number(text, condition)))
    values = pa.array([_value(part, column.type, condition) for part in text.split("|")], column.type)
    found = pc.is_in(column, value_set=values)
    return pc.invert(found) if sign == "!=" else found


def _value(text: str, kind: pa.DataType, condition: str) -> Any:
    if pa.types.is_boolean(kind):
        if text.lower() not in _TRUTH:
            raise InvalidSetting(f"A truth value must be true or false; got {condition!r}.")
        return _TRUTH[text.lower()]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        number = _number(text, condition)
        if pa.types.is_integer(kind) and number != int(number):
            raise InvalidSetting(f"The column holds whole numbers; got {condition!r}.")
        return int(number) if pa.types.is_integer(kind) else float(number)
    return text


def _number(text: str, condition: str) -> int | float:
    """A whole number stays one: a float would confuse neighbours beyond 2**53."""
    for parse in (int, float):
        try:
            number = parse(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    raise InvalidSetting(f"The value must be a finite number; got {condition!r}.")

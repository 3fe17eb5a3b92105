r"""What is known beforehand, as conditions on an item's columns: `script=Greek|Latin`, `year>=2010`.

| condition | an item satisfies it if its value |
|---|---|
| `a=x`, `a=x\|y` | is x; is x or y |
| `a!=x`, `a!=x\|y` | is not x; is neither: also where it is missing |
| `a>=x`, `a>x`, `a<=x`, `a<x` | compares so, as a number or ISO date (`2024-03-01`, `2024-03-01T12:30`) |
| `a=`, `a!=` | is missing; is not missing |

Values are written as they are, without quotes; `\|` is a bar that belongs to the value. Several conditions
must all hold. `=` with a value that no item has is refused, with the nearest that there are: as a rule it is
misspelt. Under `!=` it is told of, and excludes nothing.
"""

import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dml.errors import InvalidSetting, did_you_mean

logger = logging.getLogger(__name__)

_CONDITION = re.compile(r"^\s*(?P<column>.+?)\s*(?P<operator>!=|>=|<=|=|>|<)\s*(?P<value>.*?)\s*$", re.DOTALL)
_ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    ">": pc.greater,
    "<": pc.less,
}
_TRUTH = {"true": True, "false": False}
_BAR = re.compile(r"(?P<backslashes>\\*)\|")
_SEVERAL = re.compile(r"(\band\b|\bor\b|&|,|;).*\w\s*(!=|>=|<=|=|>|<)", re.IGNORECASE | re.DOTALL)
_SEPARATED = re.compile(r"\s*(?:[,;]|\bor\b)\s*", re.IGNORECASE)
_QUOTES = "'\"`"
_SHOWN_VALUES, _COMPARED_VALUES = 5, 10_000


def matching_rows(items: pa.Table, where: Sequence[str]) -> NDArray[np.bool_]:
    """Which items satisfy all conditions.

    Args:
        items: the index's items.
        where: conditions as above.

    Returns:
        (N,) bool.

    Raises:
        InvalidSetting: a condition that does not parse, an unknown column, a value of another type, or one
            that no item has.
    """
    if isinstance(where, str):
        raise InvalidSetting(f"where must be a list of conditions; got the text {where!r}. Pass [{where!r}].")
    mask = np.ones(len(items), dtype=np.bool_)
    for condition in where:
        mask &= _satisfied(items, condition)
    return mask


def _satisfied(items: pa.Table, condition: str) -> NDArray[np.bool_]:
    parsed = _CONDITION.match(condition) if isinstance(condition, str) else None
    if parsed is None:
        raise InvalidSetting(f"A condition must read COLUMN=VALUE (or !=, <, <=, >, >=); got {condition!r}.")
    name, sign, text = parsed["column"], parsed["operator"], parsed["value"]
    if name not in items.column_names:
        raise InvalidSetting(
            f"A condition must name one of the columns {items.column_names}; got {name!r}."
            f"{did_you_mean(name, items.column_names)}"
        )
    column = items[name]
    try:
        result = _compare(column, name, sign, text, condition)
    except (pa.ArrowInvalid, OverflowError):
        raise InvalidSetting(f"The value must fit the column's {column.type}; got {condition!r}.") from None
    satisfied: NDArray[np.bool_] = result.combine_chunks().fill_null(False).to_numpy(zero_copy_only=False)
    return satisfied


def _compare(column: pa.ChunkedArray, name: str, sign: str, text: str, condition: str) -> pa.ChunkedArray:
    if sign not in _ORDERED:
        is_among, absent = _among(column, name, _values(text), condition)
        if sign == "=" and absent:
            raise InvalidSetting(absent)
        if absent:
            logger.warning("%s So the condition excludes nothing by it.", absent)
        return pc.invert(is_among) if sign == "!=" else is_among
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        number = _number(text, condition)
        if pa.types.is_floating(column.type):
            return _ORDERED[sign](column, pa.scalar(float(number)))
        # Arrow would turn the column into floats, which confuse neighbours beyond 2**53: x > 2.5 is x > 2.
        bound = math.ceil(number) if sign in (">=", "<") else math.floor(number)
        return _ORDERED[sign](column, pa.scalar(bound))
    if _is_text(column):
        return _ORDERED[sign](*_instants(column, name, text, condition))
    raise InvalidSetting(
        f"{sign} compares numbers and ISO dates; column {name!r} holds {column.type}. Use = or !=."
    )


def _among(
    column: pa.ChunkedArray, name: str, texts: Sequence[str], condition: str
) -> tuple[pa.ChunkedArray, str]:
    """(N,) bool without nulls: whose value is one of these, an empty text being a missing value; and a word
    about a value that no item has, or nothing."""
    wanted = [_value(text, column.type, condition) for text in texts if text]
    positions = pc.index_in(column, value_set=pa.array(wanted, column.type), skip_nulls=True)
    absent = ""
    if not pa.types.is_boolean(column.type):
        present = set(pc.unique(positions).to_pylist())
        missed = [v for n, v in enumerate(wanted) if n not in present and v not in wanted[:n]]
        absent = _no_item_has(column, name, missed[0], condition) if missed else ""
    is_among = pc.is_valid(positions)
    if len(wanted) == len(texts):
        return is_among, absent
    missing = pc.is_null(column, nan_is_null=True)
    if _is_text(column):
        missing = pc.or_(missing, pc.equal(pc.fill_null(column, ""), ""))
    return pc.or_(is_among, missing), absent


def _is_text(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _values(text: str) -> list[str]:
    """The values between bars; of the backslashes before a bar a pair is one, a single one makes the bar part
    of the value."""
    values, start = [""], 0
    for bar in _BAR.finditer(text):
        backslashes = len(bar["backslashes"])
        values[-1] += text[start : bar.start()] + "\\" * (backslashes // 2)
        if backslashes % 2:
            values[-1] += "|"
        else:
            values.append("")
        start = bar.end()
    values[-1] += text[start:]
    return [value.strip() for value in values]


def _instants(
    column: pa.ChunkedArray, name: str, text: str, condition: str
) -> tuple[pa.ChunkedArray, pa.Scalar]:
    """ISO dates in a column of text, and the one to compare them with; those with a zone compare in UTC."""
    filled = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    for kind, zone in ((pa.timestamp("us"), ""), (pa.timestamp("us", "UTC"), "Z")):
        try:
            instants = pc.cast(filled, kind)
        except pa.ArrowInvalid:
            continue
        for spelt in (text, text + zone):
            try:
                return instants, pa.scalar(spelt).cast(kind)
            except pa.ArrowInvalid:
                continue
        raise InvalidSetting(
            f"The column {name!r} holds ISO dates, so the value must be one, such as 2024-03-01 or "
            f"2024-03-01T12:30; got {condition!r}.{_hint(condition)}"
        )
    raise InvalidSetting(
        f"<, <=, > and >= compare numbers and ISO dates; column {name!r} holds text that is neither, such as "
        f"{next((value for value in column.to_pylist() if value), '')!r}. Use = or !=."
    )


def _value(text: str, kind: pa.DataType, condition: str) -> Any:
    if pa.types.is_boolean(kind):
        if text.lower() not in _TRUTH:
            raise InvalidSetting(f"A truth value must be true or false; got {condition!r}.{_hint(condition)}")
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
    raise InvalidSetting(f"The value must be a finite number; got {condition!r}.{_hint(condition)}")


def _no_item_has(column: pa.ChunkedArray, name: str, value: Any, condition: str) -> str:
    values = pc.unique(column).drop_null()
    if isinstance(value, str):
        texts = values.slice(0, _COMPARED_VALUES).to_pylist()
        near = did_you_mean(value.strip("= " + _QUOTES), texts)
        have = ", ".join(map(repr, sorted(texts)[:_SHOWN_VALUES]))
        parsed = _CONDITION.match(condition)
        if parsed is not None and "|" in parsed["value"] and parsed["value"] in texts:
            escaped = _BAR.sub(lambda bar: bar["backslashes"] * 2 + r"\|", parsed["value"])
            near += f" If the bar belongs to the value, write {name}{parsed['operator']}{escaped}"
    else:
        distances = pc.abs(pc.subtract(pc.cast(values, pa.float64()), pa.scalar(float(value))))
        nearest = values.take(pc.sort_indices(distances)[:_SHOWN_VALUES])
        near, have = "", ", ".join(map(str, sorted(nearest.to_pylist())))
    more = f", ... ({len(values)} in all)" if len(values) > _SHOWN_VALUES else ""
    return (
        f"A value must be one that an item has; no item has {name} {value!r}, which {condition!r} names. "
        f"There are {have or 'none'}{more}.{near}{_hint(condition)}"
    )


def _hint(condition: str) -> str:
    """What those write who know another language of filters, and how it is said here."""
    parsed = _CONDITION.match(condition)
    text = parsed["value"] if parsed is not None else ""
    hints = []
    if text.startswith("="):
        hints.append("Compare with a single =.")
    values = [part.strip("[]() " + _QUOTES) for part in _SEPARATED.split(text)]
    if _SEVERAL.search(text):
        hints.append("Give every condition a --where of its own; several must all hold.")
    elif parsed is not None and len(values) > 1 and all(values) and "|" not in text:
        several = f"{parsed['column']}{parsed['operator']}{'|'.join(values)}"
        hints.append(f"If you mean several values, write {several!r}.")
    if text.lstrip("= ").startswith(tuple(_QUOTES)):
        hints.append("Write the value without quotes.")
    return "".join(f" {hint}" for hint in hints)

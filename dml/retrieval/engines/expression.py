"""A filter as an expression of Milvus, with every value escaped and every `not` written out.

Truth has three values in Milvus: a comparison with null is unknown, and so is its `not`. So `not` is moved
down to the comparisons, where `(not (a == 1) or a is null)` says what our two values mean. No value reaches
an expression but through `_literal`, and no column but by its field's name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dml.errors import InvalidSetting
from dml.retrieval.filters.columns import Kind, kind_of
from dml.retrieval.filters.times import time_of
from dml.retrieval.filters.tree import And, Between, Compare, Filter, In, IsNull, Not, Or, Within

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
"""Those that all of Milvus' parsers know; any other character stands for itself."""
_OPERATORS = {"=": "==", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_LEAST_INTEGER = -(2**63)
REFUSED_FILTERS = {
    "within": "it knows no distance on a sphere",
    "least integer": "it reads no integer below -9223372036854775807",
}
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
        return ""

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


def write_expression(filter: Filter, columns: Mapping[str, MilvusColumn]) -> str:
    """A filter that was checked against the columns, as an expression of Milvus.

    Raises:
        InvalidSetting: a kind of filter that Milvus would follow otherwise than we do.
    """
    return _Writer(columns).write(filter, negated=False)


def write_ids(ids: Iterable[str]) -> str:
    """The expression of the items of these ids."""
    return f"id in [{', '.join(map(_literal, ids))}]"


class _Writer:
    def __init__(self, columns: Mapping[str, MilvusColumn]) -> None:
        self._columns = columns

    def write(self, filter: Filter, *, negated: bool) -> str:
        match filter:
            case Not():
                return self.write(filter.filter, negated=not negated)
            case And() | Or():
                word = " and " if isinstance(filter, And) != negated else " or "
                return f"({word.join(self.write(each, negated=negated) for each in filter.filters)})"
            case IsNull():
                return f"({self._columns[filter.column].field} is {'not ' if negated else ''}null)"
            case Within():
                raise _refused("within", str(filter))
            case Compare(operator="!="):
                return _condition(
                    self._columns[filter.column].field, "== {}", filter.value, negated=not negated
                )
            case Compare(operator="="):
                return _condition(self._columns[filter.column].field, "== {}", filter.value, negated=negated)
            case Compare():
                field, value = self._ordered(filter.column, filter.value)
                return _condition(field, f"{_OPERATORS[filter.operator]} {{}}", value, negated=negated)
            case Between():
                field, low = self._ordered(filter.column, filter.low)
                _, high = self._ordered(filter.column, filter.high)
                return _condition(field, f">= {{}} and {field} <= {{}}", low, high, negated=negated)
            case In():
                places = ", ".join(["{}"] * len(filter.values))
                field = self._columns[filter.column].field
                return _condition(field, f"in [{places}]", *filter.values, negated=negated)
        raise AssertionError(filter)

    def _ordered(self, column: str, value: bool | int | float | str) -> tuple[str, bool | int | float | str]:
        """The field and the value to compare by order: times are integers."""
        asked = self._columns[column]
        if asked.time_type is None or not isinstance(value, str):
            return asked.field, value
        time = time_of(value, asked.time_type)
        assert time is not None, "the filter was checked"
        return asked.time_field, int(time.value)


def _condition(field: str, comparison: str, *values: bool | int | float | str, negated: bool) -> str:
    written = f"{field} {comparison.format(*map(_literal, values))}"
    return f"(not ({written}) or {field} is null)" if negated else f"({written})"


def _refused(kind: str, filter: str) -> InvalidSetting:
    return InvalidSetting(
        f"A filter must be one that Milvus follows exactly; {filter} is not: {REFUSED_FILTERS[kind]}. Leave "
        "it "
        "out, or search the index itself, without --engine."
    )


def _literal(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_ESCAPES.get(character, character) for character in value) + '"'
    if isinstance(value, int) and value <= _LEAST_INTEGER:
        raise _refused("least integer", str(value))
    return repr(value)

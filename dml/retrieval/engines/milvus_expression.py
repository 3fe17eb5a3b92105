"""A filter as an expression of Milvus, with every value escaped and every `not` written out.

Truth has three values in Milvus: a comparison with null is unknown, and so is its `not`. So `not` is moved
down to the comparisons, where `(not (a == 1) or a is null)` says what our two values mean. No value reaches
an expression but through `_literal`, and no column but by its field's name.
"""

from collections.abc import Iterable, Mapping

from dml.errors import InvalidSetting
from dml.retrieval.engines.milvus_columns import MilvusColumn
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
                return f"({word.join(self.write(child, negated=negated) for child in filter.filters)})"
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
                slots = ", ".join(["{}"] * len(filter.values))
                field = self._columns[filter.column].field
                return _condition(field, f"in [{slots}]", *filter.values, negated=negated)
        raise AssertionError(filter)

    def _ordered(self, column: str, value: bool | int | float | str) -> tuple[str, bool | int | float | str]:
        """The field and the value to compare by order: times are integers."""
        milvus_column = self._columns[column]
        if milvus_column.time_type is None or not isinstance(value, str):
            return milvus_column.field, value
        time = time_of(value, milvus_column.time_type)
        assert time is not None, "the filter was checked"
        return milvus_column.time_field, int(time.value)


def _condition(field: str, comparison: str, *values: bool | int | float | str, negated: bool) -> str:
    written = f"{field} {comparison.format(*map(_literal, values))}"
    return f"(not ({written}) or {field} is null)" if negated else f"({written})"


def _refused(kind: str, filter: str) -> InvalidSetting:
    return InvalidSetting(
        f"A filter must be one that Milvus follows exactly; {filter} is not: {REFUSED_FILTERS[kind]}. Leave "
        "it out, or search the index itself, without --engine."
    )


def _literal(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_ESCAPES.get(character, character) for character in value) + '"'
    if isinstance(value, int) and value <= _LEAST_INTEGER:
        raise _refused("least integer", str(value))
    return repr(value)

"""A filter: what is known beforehand of the items wanted, as a tree of eight kinds of node.

| node | an item satisfies it if |
|---|---|
| `And`, `Or`, `Not` | all, any, none of its filters hold |
| `Compare` | its value compares so |
| `Between` | its value is from low to high, both included |
| `In` | its value is one of these |
| `IsNull` | its value is missing: null, NaN or empty text |
| `Within` | its location is at most so far away |

Truth has two values: a comparison with a missing value is false, and `Not` inverts. So `a != x` is
`not a = x`, also where a is missing. The same tree is read from text (`parse`), from JSON (`from_json`) and
from Python (`col("age") > 20`). Times are ISO texts. `str(filter)` is its canonical text, which parses to the
same tree.
"""

import math
from datetime import date
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from dml.errors import InvalidFilter
from dml.retrieval.filters.text import MAX_TEXT_BYTES, write_name, write_value

MAX_DEPTH = 64
MAX_VALUES = 10_000
MAX_NODES = 10_000
MAX_FILTERS = 1_000
MAX_NAME_LENGTH = 1_024
Operator: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]


def _plain_value(value: Any) -> Any:
    """A value as a filter stores it; raises ValueError for what no column can hold."""
    if isinstance(value, date):  # and its subclass datetime
        return value.isoformat()
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()  # a scalar of NumPy's
    if isinstance(value, str):
        try:
            too_long = len(value.encode()) > MAX_TEXT_BYTES
        except UnicodeEncodeError:
            raise ValueError("a text must be UTF-8") from None
        if too_long:
            raise ValueError(f"a text must have at most {MAX_TEXT_BYTES} bytes")
    elif isinstance(value, bool | int | float):
        try:
            is_finite = math.isfinite(value)
        except OverflowError:
            is_finite = False
        if not is_finite:
            raise ValueError("a number must be finite")
    else:
        raise ValueError(f"a value must be text, a number or a truth value; got {type(value).__name__}")
    return value


Value: TypeAlias = Annotated[StrictBool | StrictInt | StrictFloat | StrictStr, BeforeValidator(_plain_value)]
_Filters: TypeAlias = Annotated[tuple["Filter", ...], Field(min_length=2, max_length=MAX_FILTERS)]
Column: TypeAlias = Annotated[StrictStr, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
_Degrees: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Node(BaseModel):
    """The base of the eight kinds; `str` writes the filter as text that parses to the same tree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def children(self) -> tuple["Filter", ...]:
        """The filters that this one joins or negates."""
        return ()

    def __repr__(self) -> str:
        return f"<filter {self}>"

    @cached_property
    def depth(self) -> int:
        """The number of nodes from this one down to the farthest."""
        return 1 + max((child.depth for child in self.children), default=0)

    @cached_property
    def num_nodes(self) -> int:
        """The number of nodes of the tree."""
        return 1 + sum(child.num_nodes for child in self.children)

    @cached_property
    def text(self) -> str:
        """`str(filter)`, made once."""
        return str(self)

    @property
    def column_names(self) -> frozenset[str]:
        """The names of the columns that the filter compares."""
        return frozenset().union(*(child.column_names for child in self.children))

    def __and__(self, other: "Filter") -> "And":
        if not isinstance(other, Node):
            return NotImplemented
        return make_node(And, filters=(*_same_kind(And, self), *_same_kind(And, other)))

    def __or__(self, other: "Filter") -> "Or":
        if not isinstance(other, Node):
            return NotImplemented
        return make_node(Or, filters=(*_same_kind(Or, self), *_same_kind(Or, other)))

    def __invert__(self) -> "Filter":
        return self.filter if isinstance(self, Not) else make_node(Not, filter=self)

    def __bool__(self) -> bool:
        raise TypeError(
            "A filter has no truth value. Join filters by &, | and ~, and bracket each comparison."
        )


class _Parent(Node):
    """A node with children; limited, so that a recursive walk down a tree is short."""

    @model_validator(mode="after")
    def _limit(self) -> Self:
        if self.depth > MAX_DEPTH:
            raise ValueError(f"a filter must be at most {MAX_DEPTH} deep")
        if self.num_nodes > MAX_NODES:
            raise ValueError(f"a filter must have at most {MAX_NODES} nodes")
        return self


class _ColumnCondition(Node):
    op: str
    column: Column

    @property
    def column_names(self) -> frozenset[str]:
        return frozenset({self.column})


class _Junction(_Parent):
    op: str
    filters: _Filters

    @property
    def children(self) -> tuple["Filter", ...]:
        return self.filters


class And(_Junction):
    """All of the filters hold."""

    op: Literal["and"] = "and"

    def __str__(self) -> str:
        return " and ".join(_in_brackets(f) if isinstance(f, And | Or) else str(f) for f in self.filters)


class Or(_Junction):
    """At least one of the filters holds."""

    op: Literal["or"] = "or"

    def __str__(self) -> str:
        return " or ".join(_in_brackets(f) if isinstance(f, Or) else str(f) for f in self.filters)


class Not(_Parent):
    """The filter does not hold."""

    op: Literal["not"] = "not"
    filter: "Filter"

    @property
    def children(self) -> tuple["Filter", ...]:
        return (self.filter,)

    def __str__(self) -> str:
        match self.filter:
            case And() | Or():
                return f"not {_in_brackets(self.filter)}"
            case Between(column=column, low=low, high=high):
                return f"{write_name(column)} not between {write_value(low)} and {write_value(high)}"
            case In(column=column):
                return f"{write_name(column)} not in {self.filter.list_text}"
            case IsNull(column=column):
                return f"{write_name(column)} is not null"
        return f"not {self.filter}"


class Compare(_ColumnCondition):
    """The column's value compares so with this one; `!=` is also true where it is missing."""

    op: Literal["compare"] = "compare"
    operator: Operator
    value: Value

    def __str__(self) -> str:
        return f"{write_name(self.column)} {self.operator} {write_value(self.value)}"


class Between(_ColumnCondition):
    """The column's value is from low to high, both included."""

    op: Literal["between"] = "between"
    low: Value
    high: Value

    def __str__(self) -> str:
        return f"{write_name(self.column)} between {write_value(self.low)} and {write_value(self.high)}"


class In(_ColumnCondition):
    """The column's value is one of these."""

    op: Literal["in"] = "in"
    values: Annotated[tuple[Value, ...], Field(min_length=1, max_length=MAX_VALUES)]

    @property
    def list_text(self) -> str:
        """The values in parentheses."""
        return f"({', '.join(map(write_value, self.values))})"

    def __str__(self) -> str:
        return f"{write_name(self.column)} in {self.list_text}"


class IsNull(_ColumnCondition):
    """The column's value is missing: null, NaN or empty text."""

    op: Literal["is_null"] = "is_null"

    def __str__(self) -> str:
        return f"{write_name(self.column)} is null"


class Within(Node):
    """The location is at most so far away, along a great circle.

    Attributes:
        column: a text column of `latitude,longitude`, or two columns of numbers, latitude and longitude.
        latitude: of the center, degrees, [-90, 90].
        longitude: of the center, degrees, [-180, 180].
        radius_km: kilometres, above 0.
    """

    op: Literal["within"] = "within"
    column: Column | tuple[Column, Column]
    latitude: Annotated[_Degrees, Field(ge=-90, le=90)]
    longitude: Annotated[_Degrees, Field(ge=-180, le=180)]
    radius_km: Annotated[_Degrees, Field(gt=0)]

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column or the two."""
        return (self.column,) if isinstance(self.column, str) else self.column

    @property
    def column_names(self) -> frozenset[str]:
        return frozenset(self.columns)

    def __str__(self) -> str:
        center = f"{write_value(self.latitude)}, {write_value(self.longitude)}"
        return (
            f"within({', '.join(map(write_name, self.columns))}, {center}, {write_value(self.radius_km)} km)"
        )


Filter: TypeAlias = Annotated[
    And | Or | Not | Compare | Between | In | IsNull | Within, Field(discriminator="op")
]
for _kind in (_Junction, And, Or, Not):
    _kind.model_rebuild()
N = TypeVar("N", bound=Node)
_KINDS = ("and", "or", "not", "compare", "between", "in", "is_null", "within")


def make_node(kind: type[N], **fields: Any) -> N:
    """A node of a kind; raises InvalidFilter where a field is wrong."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise invalid_filter(error) from None


def invalid_filter(error: ValidationError) -> InvalidFilter:
    """The first mistake that pydantic found in a tree, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    steps = [str(step) for step in first["loc"] if step not in _KINDS]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"].startswith("union_tag"):
        steps.append("op")
        message = f"must be one of {', '.join(_KINDS)}; got {first.get('ctx', {}).get('tag', 'none')!r}"
    path = f"{'.'.join(steps)}: " if steps else ""
    return InvalidFilter(f"A filter must be a tree of its eight kinds of node; {path}{message}.")


def _same_kind(kind: type[And] | type[Or], filter: Any) -> tuple[Any, ...]:
    return filter.filters if isinstance(filter, kind) else (filter,)


def _in_brackets(filter: Node) -> str:
    return f"({filter})"

"""Filters as JSON: `{"op": "compare", "column": "age", "operator": ">", "value": 20}`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dml.errors import InvalidFilter
from dml.retrieval.filters.text import pointed_at
from dml.retrieval.filters.tree import MAX_DEPTH, MAX_NODES, Filter, invalid_filter

_FILTER: TypeAdapter[Filter] = TypeAdapter(Filter)


def from_json(tree: Mapping[str, Any]) -> Filter:
    """The filter of a JSON object; `filter.model_dump(mode="json")` is the way back.

    Raises:
        InvalidFilter: it is none, or beyond the limits.

    Example:
        >>> print(from_json({"op": "not", "filter": {"op": "is_null", "column": "price"}}))
        price is not null
    """
    _limit(tree)
    try:
        return _FILTER.validate_python(tree)
    except ValidationError as error:
        raise invalid_filter(error) from None


def from_json_text(text: str) -> Filter:
    """As `from_json`, of the object's text.

    Raises:
        InvalidFilter: it is no JSON, or no filter.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidFilter(
            f"A filter in braces must be JSON; {error.msg} at character {error.pos + 1}.",
            pointed_at(text, error.pos),
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidFilter(f"A filter in braces must be JSON that can be read; {error}.") from None
    return from_json(tree)


def json_schema() -> dict[str, Any]:
    """The JSON schema of filters."""
    return _FILTER.json_schema()


def _limit(tree: Mapping[str, Any]) -> None:
    """Raise InvalidFilter for more objects, or deeper ones, than a filter has; without recursion."""
    level: list[Any] = [tree]
    num_objects = 0
    for depth in range(1, MAX_DEPTH + 2):
        num_objects += len(level)
        if num_objects > MAX_NODES:
            raise InvalidFilter(
                f"A filter must have at most {MAX_NODES} nodes; got more. Use a list of values."
            )
        if not level:
            return
        if depth > MAX_DEPTH:
            break
        below: list[Any] = []
        for node in level:
            for value in node.values():
                inner = (
                    value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
                )
                below += (other for other in inner if isinstance(other, Mapping))
        level = below
    raise InvalidFilter(f"A filter must be at most {MAX_DEPTH} deep; got a deeper one.")

"""What a search takes as its filter: text, a filter, its JSON, a truth column, or several of these."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Any, TypeAlias

from dml.errors import InvalidFilter
from dml.retrieval.filters.json_tree import from_json, from_json_text
from dml.retrieval.filters.parse import Parsed, parse_with_positions
from dml.retrieval.filters.python import Col
from dml.retrieval.filters.tree import Filter, Node

_One: TypeAlias = str | Filter | Col | Mapping[str, Any]
Where: TypeAlias = _One | Sequence[_One] | None
"""Several must all hold; None or none of them: every item."""


def read_filters(where: Where) -> Iterator[tuple[Parsed, str]]:
    """Each filter that must hold, with the text that it was read from, "" where it was not text.

    Raises:
        InvalidFilter: it cannot be read.
    """
    several = where if isinstance(where, Sequence) and not isinstance(where, str | bytes) else (where,)
    for one in several:
        match one:
            case None if where is None:
                return
            case str() if one.lstrip().startswith("{"):
                yield Parsed(from_json_text(one)), ""
            case str():
                yield parse_with_positions(one), one
            case Node():
                yield Parsed(one), ""
            case Col():
                yield Parsed(one.is_true()), ""
            case Mapping():
                yield Parsed(from_json(one)), ""
            case _:
                raise InvalidFilter(
                    "A filter must be text, a filter, its JSON object, or a list of these; got "
                    f"{type(one).__name__}."
                )


def all_of(filters: Sequence[Filter]) -> Filter | None:
    """The filter that holds where all do; None for none of them."""
    return reduce(and_, filters) if filters else None

"""Filters of a request: within the limits, as searches take them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from dml.errors import InvalidFilter

MAX_JSON_CHARACTERS = 65_536
Wheres: TypeAlias = list[str | Mapping[str, Any]]


def checked_where(filter: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None) -> Wheres:
    """A request's filters as a list, all of which must hold; an empty text is none.

    Raises:
        InvalidFilter: too long, or not UTF-8.
    """
    several = [filter] if isinstance(filter, str | Mapping) else list(filter or [])
    size = len(json.dumps(several, ensure_ascii=False))
    if size > MAX_JSON_CHARACTERS:
        raise InvalidFilter(
            f"A filter must be at most {MAX_JSON_CHARACTERS} characters of JSON; got {size}. Name "
            "fewer values."
        )
    try:
        json.dumps(several, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidFilter(
            "A filter must be UTF-8; got half a character of UTF-16. Write it whole."
        ) from None
    return [one for one in several if one != ""]

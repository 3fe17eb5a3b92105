"""Hints: what is known of a probe beside its image, to tell the candidates of an identification apart."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from dml.errors import InvalidSetting
from dml.numbers import is_number


def separating_attribute(candidates: Sequence[Mapping[str, frozenset[Any]]]) -> str | None:
    """The attribute whose values tell the candidates apart best: that of the highest entropy.

    Args:
        candidates: of each, attribute to the values that its images have.

    Returns:
        None where no attribute that all of them have differs. The first of equally good ones.

    Example:
        >>> suffix, region = "phone_suffix", "region"
        >>> separating_attribute([
        ...     {region: frozenset(["east"]), suffix: frozenset(["1234"])},
        ...     {region: frozenset(["east"]), suffix: frozenset(["9876"])},
        ... ])
        'phone_suffix'
    """
    highest, best = 0.0, None
    for name in candidates[0]:
        values = [candidate[name] for candidate in candidates]
        if not all(values):
            continue
        shares = [count / len(values) for count in Counter(values).values()]
        entropy = -sum(share * math.log(share) for share in shares)
        if entropy > highest + 1e-12:
            highest, best = entropy, name
    return best


def matches_hint(attributes: Mapping[str, frozenset[Any]], hint: Mapping[str, Any]) -> bool:
    """Whether a candidate has, in one image or another, each value of the hint.

    Args:
        attributes: attribute to the values that its images have.
        hint: attribute to the value known of the probe, of the attribute's type or as text.

    Example:
        >>> matches_hint({"age": frozenset([31, 32])}, {"age": "32"})
        True
    """
    return all(any(_is_equal(value, wanted) for value in attributes[name]) for name, wanted in hint.items())


def _is_equal(value: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one, which may be written as text."""
    if isinstance(value, bool):
        return str(value).lower() == str(wanted).strip().lower()
    if isinstance(value, int | float):
        number = _number(wanted, exact=isinstance(value, int))
        return number is not None and number == value
    return str(value).strip() == str(wanted).strip()


def check_hint(name: str, wanted: Any, kind: str) -> None:
    """Raise InvalidSetting for a value that no item of such a column can have.

    Args:
        name: the attribute.
        wanted: its value, of the attribute's type or as text.
        kind: what the column holds: "text", "integer", "number" or "boolean".
    """
    text = str(wanted).strip()
    what = None
    if not text:
        what = "a value"
    elif kind == "boolean" and text.lower() not in ("true", "false"):
        what = "true or false"
    elif kind in ("integer", "number") and _number(wanted, exact=kind == "integer") is None:
        what = "a number"
    if what is not None:
        raise InvalidSetting(f"The hint {name} must be {what}; got {text!r}.")


def _number(value: Any, *, exact: bool) -> Decimal | float | None:
    """A number that may be written as text; exact, since whole numbers beyond 2^53 are no float."""
    text = str(value).strip()
    if not is_number(text):
        return None
    return Decimal(text) if exact else float(text)

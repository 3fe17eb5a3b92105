"""Numbers that people and files write as text, read by one rule: ASCII digits, sign, point and exponent.

Python's own `int` and `float` also read `1_000`, the digits of other scripts, `inf` and `nan`, which readers
of CSV files and SQL do not read, or read as something else.
"""

import math
import re

NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
"""A number as text, for `re`, RE2 and grammars."""
_NUMBER, _INTEGER = re.compile(NUMBER), re.compile(r"[+-]?[0-9]+")
_MOST_DIGITS = 300
_OUTER_SPACE = " \t\r\n\f\v"


def read_integer(text: str) -> int:
    """A whole number of at most 64 bits, such as `12`, `-3` or `007`.

    Raises:
        ValueError: the text is none.

    Example:
        >>> read_integer(" +12 ")
        12
    """
    digits = text.strip(_OUTER_SPACE)
    if not _INTEGER.fullmatch(digits) or len(digits) > _MOST_DIGITS or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"A whole number must be digits 0-9, of at most 64 bits; got {text[:100]!r}.")
    return int(digits)


def read_number(text: str) -> float:
    """A finite number, such as `12`, `-.5` or `1e3`.

    Raises:
        ValueError: the text is none.

    Example:
        >>> read_number("1.5e3")
        1500.0
    """
    digits = text.strip(_OUTER_SPACE)
    if not is_number(digits):
        raise ValueError(f"A number must be digits 0-9 with sign, point and exponent; got {text[:100]!r}.")
    return float(digits)


def is_number(text: str) -> bool:
    """Whether a text, without white space around it, is a finite number.

    Example:
        >>> [is_number(text) for text in ("12", "-.5", "1_000", "inf")]
        [True, True, False, False]
    """
    return bool(_NUMBER.fullmatch(text)) and math.isfinite(float(text))

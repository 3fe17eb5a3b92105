"""How names and values are written in the language of filters."""

import re
import unicodedata

MAX_TEXT_BYTES = 8192
KEYWORDS = ("and", "or", "not", "between", "in", "is", "null", "true", "false", "within")
NAME = rf"(?!(?i:{'|'.join(KEYWORDS)})\b)[^\W\d]\w*"
"""A column's name that needs no quotes."""
_EXCERPT = 72
_CONTROL = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's control and format characters, surrogates, and separators of lines and paragraphs."""


def write_name(name: str) -> str:
    """A column's name, in double quotes where it needs them.

    Example:
        >>> write_name("age"), write_name("unit price"), write_name("in")
        ('age', '"unit price"', '"in"')
    """
    return name if re.fullmatch(NAME, name) else '"' + name.replace('"', '""') + '"'


def write_value(value: bool | int | float | str) -> str:
    """A value: text in single quotes, with each single quote inside doubled.

    Example:
        >>> write_value("O'Hara"), write_value(True), write_value(2.5)
        ("'O''Hara'", 'true', '2.5')
    """
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def pointed_at(text: str, position: int) -> str:
    """The part of a text around a position, and below it a caret that points there.

    Control characters are shown as `·`; wide characters take two columns.
    """
    start = max(0, position - _EXCERPT // 2)
    shown = "".join("·" if unicodedata.category(c) in _CONTROL else c for c in text[start : start + _EXCERPT])
    before = "..." if start else ""
    after = "..." if start + _EXCERPT < len(text) else ""
    indent = len(before) + sum(map(_width, shown[: position - start]))
    return f"  {before}{shown}{after}\n  {' ' * indent}^"


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1

"""What was probably meant by a filter that cannot be read: its text and the mistake in, a suggestion out.

Those who know SQL, Python or another tool write `==`, `&`, `None`, or text without quotes.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator

from dml.retrieval.filters.text import KEYWORDS, write_name, write_value

_NAME_QUOTES = ('"', "`")
_OPERATOR = re.compile(r"!=|>=|<=|==?|>|<")
_UNQUOTED_NAME, _UNQUOTED_VALUES = re.compile(r"[^\W\d][\w ]*"), re.compile(r"[^'\"()<>=]*")
_KEYWORD = re.compile(rf"\b({'|'.join(KEYWORDS)})\b", re.IGNORECASE)
_PLAIN_VALUE = re.compile(r"[+-]?\d+(\.\d+)?|true|false|\d{4}-\d\d-\d\d(T[\d:.]+Z?)?", re.IGNORECASE)
_TEXT = re.compile(r"('(?:[^']|'')*')")
_DOUBLE_QUOTED = re.compile("[“”„‟″«»「『]([^“”„‟″«»「」『』]*)[“”″«»」』]")
_OPERATORS_OF_ONE = {"≥": ">=", "⩾": ">=", "≧": ">=", "≤": "<=", "⩽": "<=", "≦": "<=", "≠": "!="}
_PUNCTUATION = {**dict.fromkeys("‘’‚‛′‹›`´", "'"), **dict.fromkeys("−–—‐‑", "-"), "٫": ".", "٬": "", "،": ","}
_DAY, _CLOCK, _ZONE = r"(\d{4}-\d\d-\d\d)", r"(\d\d:\d\d(?::\d\d(?:\.\d+)?)?)", r"(Z|[+-]\d\d(?::?\d\d)?)"
_DAY_OF_ZONE = re.compile(rf"\b{_DAY}{_ZONE}(?!\w)", re.IGNORECASE)
_TIME = re.compile(rf"\b{_DAY}[T ]{_CLOCK} ?{_ZONE}?(?!\w)", re.IGNORECASE)
_GROUPED, _DECIMAL_COMMA = re.compile(r"\b\d+(_\d+)+\b"), re.compile(r"\d+,\d+")
_WORDS = re.compile(r"\w[\w.@/\\-]*(\s+(?!(?:and|or|not|in|is|between)\b)\w[\w.@/\\-]*)*", re.IGNORECASE)
_NULLS = ("null", "none", "nil", "nan")
_TEXT_OPERATORS = (
    "like",
    "ilike",
    "contains",
    "startswith",
    "matches",
    "regexp",
    "rlike",
    "glob",
    "similar",
    "~",
)
_CONJUNCTIONS = {"&": "and", "|": "or", ",": "and", ";": "and"}
_OTHER_OPERATORS = {"!": " Write not.", "=": " Write a single =.", "~": " Write not."}


def suggestion(
    text: str, position: int, found: str, terminals: set[str], *, is_read: Callable[[str], bool]
) -> str:
    """A sentence with a leading space; empty where nothing is likely.

    Args:
        text: the filter.
        position: of the mistake in it.
        found: what is there; empty at the end.
        terminals: of the grammar, those that could be there.
        is_read: whether a text is a filter; only such a one is suggested.
    """
    word, is_value = found.lower(), "TEXT" in terminals
    if is_value and word in _NULLS:
        return " A missing value has a condition of its own: a is null, or a is not null."
    for written in (*_in_plain_characters(text), _rewritten(text)):
        if written and written != text and is_read(written):
            return f" Write: {written}"
    for number in _DECIMAL_COMMA.finditer(text):
        if number.start() < position < number.end():
            return f" A decimal point is a dot: {number[0].replace(',', '.')}"
    if found == "'":
        return " A text ends with a single quote; one inside it is written ''."
    if is_value and found[:1] in _NAME_QUOTES and len(found) > 1:
        return f" Text stands in single quotes: {write_value(found[1:-1])}"
    if is_value and (words := _WORDS.match(text, position)):
        return f" Text stands in single quotes: {write_value(words[0])}"
    if "NAME" in terminals and (found[:1].isdigit() or found[:1] == "'"):
        return " The column comes first, as in age > 20."
    if "_NULL" in terminals and word in ("true", "false"):
        return f" Write = {word}."
    if "OPERATOR" in terminals and word in _TEXT_OPERATORS:
        return " Texts are compared whole, by = or in."
    if "_AND" in terminals and found in _CONJUNCTIONS:
        return f" Write {_CONJUNCTIONS[found]}."
    return _OTHER_OPERATORS.get(found, "")


def _in_plain_characters(text: str) -> Iterator[str]:
    """The text with the digits, quotes and operators of a keyboard, as it may have been meant; texts in
    single quotes are left as they are."""
    for quote in ("'", '"'):
        parts = _TEXT.split(_requoted(text, quote))
        parts[::2] = ["".join(map(_plain, part)) for part in parts[::2]]
        yield "".join(parts)
        parts[::2] = map(_spelt, parts[::2])
        yield "".join(parts)


def _requoted(text: str, quote: str) -> str:
    """With these quotes in place of curly and angular ones."""
    return _DOUBLE_QUOTED.sub(lambda inside: quote + inside[1].replace(quote, 2 * quote) + quote, text)


def _spelt(text: str) -> str:
    """With times that have a T where they have hours, and numbers without underscores."""
    text = _DAY_OF_ZONE.sub(lambda day: f"{day[1]}T00:00{day[2].upper()}", text)
    text = _TIME.sub(lambda time: f"{time[1]}T{time[2]}{(time[3] or '').upper()}", text)
    return _GROUPED.sub(lambda number: number[0].replace("_", ""), text)


def _plain(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    wide = unicodedata.normalize("NFKC", character)
    plain = wide if len(wide) == 1 and wide.isascii() and not wide.isalnum() else character
    return _OPERATORS_OF_ONE.get(character) or _PUNCTUATION.get(character, plain)


def _rewritten(text: str) -> str:
    """A condition of the form `script=Greek|Latin` in the language of filters; empty if it is none."""
    match = _OPERATOR.search(text)
    if match is None:
        return ""
    column, meant = text[: match.start()].strip(), text[match.end() :].strip()
    are_plain = _UNQUOTED_NAME.fullmatch(column) and _UNQUOTED_VALUES.fullmatch(meant)
    if not are_plain or "||" in meant or _KEYWORD.search(column) or _KEYWORD.search(meant):
        return ""
    name, operator = write_name(column), match[0].replace("==", "=")
    values = [value.strip(" []") for value in re.split(r"[|,;]", meant)]
    written = [value if _PLAIN_VALUE.fullmatch(value) else write_value(value) for value in values if value]
    if operator not in ("=", "!="):
        return f"{name} {operator} {written[0]}" if len(values) == len(written) == 1 else ""
    several = f"{'not ' if operator == '!=' else ''}in ({', '.join(written)})"
    missing = f"{name} is {'not ' if operator == '!=' else ''}null"
    if not written:
        return missing
    condition = f"{name} {operator} {written[0]}" if len(written) == 1 else f"{name} {several}"
    if len(written) == len(values):
        return condition
    return f"{condition} {'and' if operator == '!=' else 'or'} {missing}"

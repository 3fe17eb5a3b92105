"""What was probably meant by a filter that cannot be read: its text and the mistake in, a suggestion out.

Those who know SQL, Python or another tool write `==`, `&`, `None`, or text without quotes.
"""

import re

from dml.retrieval.filters.text import KEYWORDS, write_name, write_value

_NAME_QUOTES = ('"', "`")
_OPERATOR = re.compile(r"!=|>=|<=|==?|>|<")
_UNQUOTED_NAME, _UNQUOTED_VALUES = re.compile(r"[^\W\d][\w ]*"), re.compile(r"[^'\"()<>=]*")
_KEYWORD = re.compile(rf"\b({'|'.join(KEYWORDS)})\b", re.IGNORECASE)
_PLAIN_VALUE = re.compile(r"[+-]?\d+(\.\d+)?|true|false|\d{4}-\d\d-\d\d(T[\d:.]+Z?)?", re.IGNORECASE)
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


def suggestion(text: str, position: int, found: str, terminals: set[str]) -> str:
    """A sentence with a leading space; empty where nothing is likely.

    Args:
        text: the filter.
        position: of the mistake in it.
        found: what is there; empty at the end.
        terminals: of the grammar, those that could be there.
    """
    word, is_value = found.lower(), "TEXT" in terminals
    if is_value and word in _NULLS:
        return " A missing value has a condition of its own: a is null, or a is not null."
    if rewritten := _rewritten(text):
        return f" Write: {rewritten}"
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

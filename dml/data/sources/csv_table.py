"""CSV tables: four delimiters, the usual encodings, and careful type inference.

A column becomes numeric only if every value is unchanged when it is parsed and written again: `11` and `1.5`
are numbers, while `007`, `+1`, `1e5`, `1.50` and ` 5` stay text. A header such as `price:double` sets the
type; the types are string, int64, double and bool. What a number may be then is in `dml.numbers`.
"""

import csv
import io
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from dml.data.sources.table import NAMED, Table, is_index
from dml.errors import InvalidData
from dml.numbers import read_integer, read_number

logger = logging.getLogger(__name__)

_EXCEL_DELIMITER = re.compile(r"\Asep=.\r?\n", re.IGNORECASE)
_DELIMITERS = ",;\t|"
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_TRUTH = ({"true", "false"}, {"True", "False"}, {"TRUE", "FALSE"})
_MOST_NAMED = 30
_FIELD_CHARACTERS = 1 << 20


def read_csv(content: bytes, uri: str) -> Table:
    """The table in a CSV file; raises InvalidData with the problem and its line."""
    text = _decoded(content, uri)
    if "\0" in text:
        raise InvalidData(
            f"{uri} must be a CSV table, which is text; it holds zero bytes, as a workbook or another binary "
            "file does. Save it as CSV."
        )
    text = _EXCEL_DELIMITER.sub("", text)
    header_line = next((line for line in text[:_FIELD_CHARACTERS].splitlines() if line.strip()), "")
    delimiter, spaced = _dialect(header_line)
    csv.field_size_limit(_FIELD_CHARACTERS)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaced, strict=True
    )
    try:
        header = [name.strip() for name in next(filter(None, reader), [])]
        records = [record for record in reader if record]
    except csv.Error as error:
        raise InvalidData(
            f"{uri} must be a CSV table; line {reader.line_num} is not: {error}. Quote fields that hold the "
            f"delimiter {delimiter!r} or quotes, and double the quotes in them."
        ) from error
    names, types = declared_types(header, uri)
    refused = {
        row: ("wrong number of fields", f"{len(record)} fields, where the header names {len(names)}")
        for row, record in enumerate(records)
        if len(record) != len(names)
    }
    width = len(names)
    padded = [record if len(record) == width else (record + [""] * width)[:width] for record in records]
    columns: dict[str, list[Any]] = {}
    for column, name in enumerate(names):
        texts = [record[column] or None for record in padded]
        if name in NAMED:
            columns[name] = texts
        elif not is_index(name):
            columns[name] = _typed(name, texts, types.get(name), refused)
    return Table(header[:_MOST_NAMED], columns, refused=refused)


def _decoded(content: bytes, uri: str) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    if content[1:2] == b"\0" or content[:1] == b"\0":  # UTF-16 of ASCII letters, without its mark
        return content.decode("utf-16-le" if content[1:2] == b"\0" else "utf-16-be", errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse_damaged_utf8(content, error, uri)
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidData(
            f"{uri} must be UTF-8, UTF-16 or Windows' western encoding (cp1252); line {line} is none of "
            f"them: {content[error.start : error.start + 8]!r}. Save it as UTF-8."
        ) from error
    logger.warning(
        "%s is not UTF-8 and is read in Windows' western encoding (cp1252); where labels look wrong, save it "
        "as UTF-8",
        uri,
    )
    return text


def _refuse_damaged_utf8(content: bytes, error: UnicodeDecodeError, uri: str) -> None:
    """Raise if most characters beyond ASCII are valid UTF-8; decoded as cp1252, each would become two."""
    beyond = [char for char in content.decode("utf-8", errors="surrogateescape") if char > "\x7f"]
    broken = sum("\udc80" <= char <= "\udcff" for char in beyond)
    if 2 * broken < len(beyond):
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidData(
            f"{uri} must be UTF-8 throughout, as most of it is; line {line} is not: "
            f"{content[error.start : error.start + 8]!r}. Repair that line, or save the table as UTF-8."
        )


def _dialect(header: str) -> tuple[str, bool]:
    """The header's delimiter, and whether a space follows it each time."""

    def names(delimiter: str) -> list[str]:
        return [name.strip().strip('"') for name in header.split(delimiter)]

    delimiter = max(_DELIMITERS, key=lambda d: ({"image", "label"} <= set(names(d)), header.count(d)))
    rest = header.split(delimiter)[1:]
    return delimiter, delimiter != "\t" and bool(rest) and all(name.startswith(" ") for name in rest)


def declared_types(header: Sequence[str], uri: str) -> tuple[list[str], dict[str, str]]:
    """The columns' names, and the types that the header declares for some of them."""
    names, types = [], {}
    for written in header:
        name, colon, kind = (part.strip() for part in written.partition(":"))
        if colon and kind not in PARSERS:
            raise InvalidData(
                f"A type in the header must be one of {list(PARSERS)}; {uri} has {written!r}. Write, for "
                f"example, {name}:string."
            )
        if colon and name not in NAMED:
            types[name] = kind
        names.append(name)
    twice = sorted({name for name in names if names.count(name) > 1 and not is_index(name)})
    if twice:
        raise InvalidData(f"Each column of {uri} must have a unique name; got {twice} twice. Rename one.")
    return names, types


def _typed(
    name: str, texts: list[str | None], declared: str | None, refused: dict[int, tuple[str, str]]
) -> list[Any]:
    """The column's values; a blank is a missing value, but an empty text in a text column."""
    kind = declared or inferred_type(texts)
    if kind == "string":
        return [text or "" for text in texts] if any(texts) else list(texts)
    parse = PARSERS[kind]
    values: list[Any] = []
    for row, text in enumerate(texts):
        try:
            values.append(None if text is None else parse(text))
        except ValueError:
            values.append(None)
            refused.setdefault(row, ("wrong type", f"{name} must be {kind}; got {text!r}"))
    return values


def inferred_type(texts: Sequence[str | None]) -> str:
    """The type of a column of these texts: "string", "int64", "double" or "bool"."""
    values = {text for text in texts if text is not None}
    if not values:
        return "string"
    if any(values <= words for words in _TRUTH):
        return "bool"
    if all(_reads_back_as_int(text) for text in values):
        return "int64"
    if all(_reads_back_as_double(text) or _is_exact_as_double(text) for text in values):
        return "double"
    return "string"


def _reads_back_as_int(text: str) -> bool:
    try:
        return str(read_integer(text)) == text
    except ValueError:
        return False


def _reads_back_as_double(text: str) -> bool:
    try:
        return repr(read_number(text)) == text
    except ValueError:
        return False


def _is_exact_as_double(text: str) -> bool:
    """Whether an integer in a column of doubles is exactly representable; beyond 2**53 not all are."""
    return _reads_back_as_int(text) and int(float(text)) == int(text)


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


PARSERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "int64": read_integer,
    "double": read_number,
    "bool": _bool,
}
"""What reads a text as a value of a type; it raises ValueError for another text."""

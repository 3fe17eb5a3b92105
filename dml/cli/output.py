"""How answers are printed: `emit` for the answer of any verb, as JSON or for people."""

import json
import math
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dml.errors import CorruptArtifact, DmlError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dml.storage import Version

R = TypeVar("R", bound="BaseModel")

stdout: ContextVar[TextIO | None] = ContextVar("stdout", default=None)
"""Where the one JSON object goes."""

_WIDTH_IN_FILES, _UNBOUND = 160, 10_000
_MOST_ROWS_LAID_OUT = 1000
"""Rich takes 17 s of CPU for 50,000 rows, lines of text 0.3 s."""
_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's control characters, surrogates and separators of lines and paragraphs."""
_BIDI_CONTROLS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Unicode's direction controls: they make a terminal write the rest of a line from right to left."""


def emit(result: R, as_json: bool, show: Callable[[R], None], *, error: Exception | None = None) -> R:
    """Print a verb's answer.

    Args:
        result: the answer; its type is what the verb returns, and what docs/json.md describes.
        as_json: print it as one JSON object.
        show: prints it for people.
        error: what is wrong although there is an answer, a `PartialResult`: printed after it, and the
            command ends with its exit status.

    Returns:
        The answer.
    """
    if error is not None:
        result = result.model_copy(update={"error": str(error)})
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        show(result)
    if error is not None:
        print_error(str(error))
        raise typer.Exit(error.exit_status if isinstance(error, DmlError) else 1)
    return result


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object; NaN and infinity, which JSON cannot hold, become null."""
    print(json.dumps(_finite(content), allow_nan=False), file=stdout.get(), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_error(message: str, *, keep: str = "") -> None:
    """The last line of a command that failed; `keep` as `visible` has it."""
    print(f"error: {visible(message, keep=keep)}", file=sys.stderr)


def what_is_damaged(errors: Sequence[DmlError]) -> DmlError | None:
    """One error for all that could not be listed; None: nothing was damaged."""
    if len(errors) <= 1:
        return next(iter(errors), None)
    return CorruptArtifact(f"{errors[0]} {len(errors) - 1} more are damaged; `dml verify` names them all.")


def listed(kind: type[R], version: "Version[Any]", **more: Any) -> R:
    """A version in a list: its ref's fields, when it was published, whether it is in use, and more."""
    ref = version.ref.model_dump()
    return kind.model_validate({**ref, "created": version.created, "current": version.is_current, **more})


def columns_of(current: bool, created: datetime | None) -> dict[str, str]:
    """The columns of a version's row that say whether it is in use, and since when it is there."""
    return {"current": "*" if current else "", "created": f"{created:%Y-%m-%d %H:%M:%S}" if created else ""}


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table as its cells are: nothing in them is markup, and control characters are made visible.

    Where it is wider than the screen and has more columns than rows, its columns become lines.
    """
    if not rows:
        print(f"{visible(title)}: none")
        return
    if len(rows) > _MOST_ROWS_LAID_OUT:
        _print_lines(title, rows)
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_IN_FILES)
    table = _table(title, rows)
    if Console(width=_UNBOUND).measure(table).maximum > console.width:
        table = _table(title, _transposed(rows))
    console.print(table)


def _print_lines(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A long table: a line per row, columns aligned, none folded."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [
        [visible(column) for column in columns],
        *([_cell(row.get(c, "")) for c in columns] for row in rows),
    ]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    padded = ("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in lines)
    print("\n".join([visible(title), *padded]))


def _transposed(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """A line per column, beside the first column's values; as they are where that would not be narrower."""
    head, *names = dict.fromkeys(column for row in rows for column in row)
    heads = [str(row.get(head, "")) for row in rows]
    if len(rows) >= len(names) or len({head, *heads}) <= len(heads):
        return rows
    return [
        {head: name, **{each: row.get(name, "") for each, row in zip(heads, rows, strict=True)}}
        for name in names
    ]


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=Text(visible(title)), title_justify="left")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(Text(visible(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column, ""))) for column in columns))
    return table


def _cell(value: Any) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else visible(str(value))


def visible(text: str, *, keep: str = "") -> str:
    r"""Text that a terminal shows and does not obey: control characters are written as Python escapes them.

    Args:
        text: from outside, such as a label of a dataset.
        keep: control characters to leave as they are.

    Example:
        >>> print(visible("a\x1b[31mb\n"))
        a\x1b[31mb\n
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if char not in keep and (unicodedata.category(char) in _UNSEEN or ord(char) in _BIDI_CONTROLS)
        else char
        for char in text
    )

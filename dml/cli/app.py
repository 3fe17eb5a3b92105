"""What every verb shares: the app, the options spelt alike everywhere, and how answers are printed."""

import json
import math
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import dml
from dml.errors import CorruptArtifact, DmlError, InvalidSetting, MissingArtifact

if TYPE_CHECKING:
    from dml.storage import Version

output: ContextVar[TextIO | None] = ContextVar("output", default=None)
"""Where the one JSON object goes."""

app = typer.Typer(
    help="Deep metric learning end to end: labelled images in, a similarity search out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Store = Annotated[
    str | None, typer.Option("--store", help="local folder or s3:// URI; else DML_STORE, else ./dml-store")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout, logs on stderr")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="change a setting: path.to.key=value; repeatable")
]
Preset = Annotated[str, typer.Option(help="experiment to start from; `dml presets` lists them")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="default: as the size asks")]

_WIDTH_IN_FILES, _UNBOUND = 160, 10_000
_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's control characters, surrogates and separators of lines and paragraphs."""
_BIDI_CONTROLS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Unicode's direction controls: they make a terminal write the rest of a line from right to left."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dml {dml.__version__}")
        raise typer.Exit()


@app.callback()
def _dml(
    _version: Annotated[
        bool,
        typer.Option("--version", help="the version, and no more", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Deep metric learning end to end: labelled images in, a similarity search out."""


def store_uri(explicit: str | None) -> str:
    """As `dml.settings` has it, which waits for PyArrow; a help text does not."""
    from dml.settings import store_uri

    if explicit is not None and not explicit.strip():
        raise InvalidSetting(
            "--store must be a folder or an s3:// URI; got an empty one. Leave it out, or name one."
        )
    return store_uri(explicit)


def store_to_list(explicit: str | None) -> str:
    """The store whose content is listed.

    Raises:
        MissingArtifact: it was named, and is not there: to say that nothing is in it would mislead.
    """
    from dml.settings import has_registry

    root = store_uri(explicit)
    named = explicit is not None or bool(os.environ.get("DML_STORE"))
    if named and not os.path.isdir(root) and not has_registry(root):
        raise MissingArtifact(
            f"A store must exist to be listed; there is no {root}. Check --store or DML_STORE."
        )
    return root


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object; NaN and infinity, which JSON cannot hold, become null."""
    print(json.dumps(_finite(content), allow_nan=False), file=output.get())


def print_json_with_error(content: Mapping[str, Any], error: DmlError) -> NoReturn:
    """End a verb that has an answer although something is wrong: one JSON object holds both."""
    print_json({**content, "error": str(error)})
    typer.echo(f"error: {visible(str(error))}", err=True)
    raise typer.Exit(error.exit_status)


def what_is_damaged(found: Sequence[DmlError]) -> DmlError | None:
    """One error for all that could not be listed; None: nothing was damaged."""
    if len(found) <= 1:
        return next(iter(found), None)
    return CorruptArtifact(f"{found[0]} {len(found) - 1} more are damaged; `dml verify` names them all.")


def marks_of(version: "Version[Any]") -> dict[str, str]:
    """The columns of a version's line that say whether it is in use, and since when it is there."""
    return {
        "current": "*" if version.is_current else "",
        "created": version.created[:19].replace("T", " "),
    }


def json_of(version: "Version[Any]") -> dict[str, Any]:
    """A version in JSON: its ref, when it was published, and whether it is in use."""
    ref = version.ref.model_dump(mode="json")
    return {**ref, "created": version.created, "current": version.is_current}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table as its cells are: nothing in them is markup, and control characters are made visible.

    Where it is wider than the screen and has more columns than rows, its columns become lines.
    """
    if not rows:
        print(f"{visible(title)}: none")
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_IN_FILES)
    table = _table(title, rows)
    if Console(width=_UNBOUND).measure(table).maximum > console.width:
        table = _table(title, _transposed(rows))
    console.print(table)


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

"""What every verb shares: the app, the options spelt alike everywhere, and how answers are printed."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

output: ContextVar[TextIO | None] = ContextVar("output", default=None)
"""Where the one JSON object goes."""

app = typer.Typer(
    help="Deep metric learning end to end: labelled images in, a similarity search out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
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


def print_json(content: Mapping[str, Any]) -> None:
    print(json.dumps(content), file=output.get())


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: Any) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

"""What every verb shares: the app, and the options spelt alike everywhere."""

import os
from collections.abc import Callable
from getpass import getuser
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperOption

import dml
from dml.errors import InvalidSetting, MissingArtifact

F = TypeVar("F", bound=Callable[..., Any])
ANSWER = "answer"
"""The attribute of a verb's function with the name of its answer's type."""

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
    list[str] | None, typer.Option("--set", help="change a setting, path.to.key=value; repeatable")
]
Preset = Annotated[str, typer.Option(help="experiment to start from; `dml presets` lists them")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="processes that work at once; default: as the size asks"),
]
Who = Annotated[str | None, typer.Option("--who", help="who does it; default: the user of this machine")]


def who_or_user(who: str | None) -> str:
    """Who does it, as given by `--who`; None: the user of this machine. Raises InvalidSetting for no name."""
    if who is not None and not who.strip():
        raise InvalidSetting(f"--who must name somebody; got {who!r}. Leave it out: then it is the user.")
    return getuser() if who is None else who


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


def verb(register: Callable[..., Callable[[Any], Any]] = app.command, **options: Any) -> Callable[[F], F]:
    """Make a function a verb, whose answer is what it returns.

    The annotation of its return value is text, since results need pydantic, which a help text does not wait
    for. Typer would evaluate it; docs/json.md is made of it.

    Args:
        register: Typer's decorator of a command or of a group's callback.
        options: for that.
    """

    def decorate(function: F) -> F:
        setattr(function, ANSWER, function.__annotations__.pop("return"))
        registered: F = register(**options)(function)
        return registered

    return decorate


class SeveralWords(TyperCommand):
    """`--losses margin circle` means `--losses margin --losses circle`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {
            name
            for option in self.params
            if isinstance(option, TyperOption) and option.multiple and option.nargs == 1
            for name in option.opts
        }
        spelt: list[str] = []
        current, words = "", 0
        for word in args:
            if word.startswith("--"):
                current, words = (word if word in several else ""), 0
            elif current:
                words += 1
                if words > 1:
                    spelt.append(current)
            spelt.append(word)
        return super().parse_args(ctx, spelt)


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

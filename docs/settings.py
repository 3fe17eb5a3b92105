"""The page of settings, made from the configuration's own schema when the site is built."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dml import config
from dml.config.text import kind_of, parts_of
from dml.models.external import ImportConfig
from dml.serving.app.settings import ServiceSettings

PAGE, PLACE = "configuration.md", "<!-- settings -->"
ROOTS: dict[str, tuple[type[BaseModel], str]] = {
    "An experiment": (
        config.ExperimentConfig,
        "`dml train --set`, `dml demo --set`, `dml bench --set`, and files for `--config`.",
    ),
    "An ingest": (config.IngestConfig, "`dml ingest --set`."),
    "An evaluation": (config.EvaluationConfig, "`dml evaluate --set`; in an experiment below `evaluation.`"),
    "A report": (config.ReportConfig, "`dml report MODEL DATASET --set`."),
    "A report of a dataset": (config.DatasetReportConfig, "`dml report DATASET --set`."),
    "An import": (
        ImportConfig,
        "`dml models import --set` and `dml index --embedder --set`, with `--detector`.",
    ),
    "An index": (config.IndexConfig, "`dml index --factory`; from Python and in deployments `IndexConfig`."),
    "A service": (
        ServiceSettings,
        "`dml serve --set`. The store, the indexes and the file of keys are its arguments and options.",
    ),
}
_ARGUMENTS = {"A service": ("store", "indexes", "keys")}
"""Fields that are arguments or options of the verb, and no settings."""
_BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs' hook: puts the tables where the page wants them."""
    return markdown.replace(PLACE, tables()) if page.file.src_uri == PAGE else markdown


def tables() -> str:
    """Every section's settings, one table a section."""
    return "\n".join(
        line
        for title, (root, where) in ROOTS.items()
        for line in [f"## {title}", "", where, "", *_sections(root, "", without=_ARGUMENTS.get(title, ()))]
    )


def _sections(part: type[BaseModel], path: str, *, without: Collection[str] = ()) -> Iterator[str]:
    """The table of a section, then those of the sections in it."""
    hidden = {"kind", *without}
    fields = {name: field for name, field in part.model_fields.items() if name not in hidden}
    plain = {name: field for name, field in fields.items() if not parts_of(field.annotation)}
    if plain:
        yield from ["| setting | takes | default | |", "|---|---|---|---|"]
        yield from (_row(path + name, field) for name, field in plain.items())
        yield ""
    for name, field in fields.items():
        if name not in plain:
            yield from _inner(path + name, field)


def _inner(path: str, field: FieldInfo) -> Iterator[str]:
    parts = parts_of(field.annotation)
    default = field.get_default(call_default_factory=True)
    first = (
        "off (`null`)"
        if default is None
        else f"kind `{default.kind}`"
        if len(parts) > 1 and isinstance(default, BaseModel)
        else ""
    )
    yield from [f"### `{path}`", ""]
    said = [field.description or "", f"Default: {first}." if first else ""]
    if any(said):
        yield from [" ".join(filter(None, said)), ""]
    for part in parts:
        if len(parts) > 1:
            about = (part.__doc__ or "").strip().split("\n")[0] if part.__doc__ != BaseModel.__doc__ else ""
            yield from [f"**`{path}.kind={kind_of(part)}`** {about}".strip(), ""]
        elif part.__doc__:
            yield from [part.__doc__.strip().split("\n\n")[0], ""]
        yield from _sections(part, f"{path}.")


def _row(path: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "needed" if default is PydanticUndefined else f"`{_text(default)}`"
    cells = [f"`{path}`", _takes(field), shown, field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str)


def _takes(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(each, name)}"
        for each in field.metadata
        for kind, (name, sign) in _BOUNDS.items()
        if isinstance(each, kind)
    ]
    bounds += [f"at least {each.min_length}" for each in field.metadata if isinstance(each, MinLen)]
    return ", ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(each) for each in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    words = {
        int: "integer",
        float: "number",
        bool: "`true`, `false`",
        str: "text",
        Path: "path",
        NoneType: "`null`",
    }
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))

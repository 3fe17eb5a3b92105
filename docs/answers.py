"""The page of what `--json` prints, made from the types that the verbs return when the site is built."""

from collections.abc import Iterator
from typing import Any

import typer
from pydantic import BaseModel

from dml import config, refs, reports
from dml.cli.app import ANSWER
from dml.cli.command import app

PAGE, PLACE = "json.md", "<!-- types -->"
_WORDS = {"string": "text", "number": "number", "integer": "integer", "boolean": "boolean"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs' hook: puts the types where the page wants them."""
    return markdown.replace(PLACE, types()) if page.file.src_uri == PAGE else markdown


def verbs() -> dict[str, tuple[type[BaseModel], ...]]:
    """Every verb that takes `--json`, as it is typed, and the types of its answer; most have one."""
    return dict(_verbs(typer.main.get_command(app), ()))


def _verbs(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, tuple[type[BaseModel], ...]]]:
    if any("--json" in parameter.opts for parameter in command.params):
        names = getattr(command.callback, ANSWER).removesuffix(" | None").split(" | ")
        yield " ".join(words), tuple(_type(name) for name in names)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _verbs(inner, (*words, name))


def _type(name: str) -> type[BaseModel]:
    (module,) = [module for module in (refs, reports, config) if hasattr(module, name)][:1]
    kind: type[BaseModel] = getattr(module, name)
    return kind


def types() -> str:
    """Every type that an answer is or holds, one table a type, by name; settings have a page of their own."""
    schemas: dict[str, Any] = {}
    for kind in (kind for kinds in verbs().values() for kind in kinds):
        if not issubclass(kind, config.Part):
            schema = kind.model_json_schema(mode="serialization")
            schemas |= schema.pop("$defs", {}) | {kind.__name__: schema}
    return "\n".join(line for name in sorted(schemas) for line in _section(name, schemas[name]))


def _section(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield from [f"### {name}", "", " ".join(schema.get("description", "").split()), ""]
    yield from ["| key | value | |", "|---|---|---|"]
    for key, field in schema.get("properties", {}).items():
        cells = [f"`{key}`", _value(field), field.get("description", "")]
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    yield ""


def _value(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{word}`" for word in field.get("enum", [field.get("const")]))
    for either in ("anyOf", "oneOf", "allOf"):
        if either in field:
            return " or ".join(_value(each) for each in field[either])
    if field.get("type") == "array":
        return f"list of {_value(field.get('items', {}))}"
    if field.get("type") == "object":
        inner = field.get("additionalProperties", {})
        return f"object of {_value(inner)}" if isinstance(inner, dict) else "object"
    if field.get("format") == "date-time":
        return "time, ISO 8601"
    return _WORDS.get(field.get("type", ""), "`null`" if field.get("type") == "null" else "any")

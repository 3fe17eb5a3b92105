"""Parsing of settings from `path.to.key=value` and YAML or JSON files, according to their fields' types.

| type of the field | accepted text |
|---|---|
| text, or one of several words | the text unchanged, also `2024`; surrounding double quotes are removed |
| number, true or false | `1e-3`, `20`, `true` |
| several values | `[1, 10]` or `1,10` |
| a section | JSON, such as `loss={"kind": "margin"}` |
| anything optional | `null` |

Plain words in a YAML file are parsed the same way: `1e-3` is a number in a number's field; `no` and `2024`
are text in a text field.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from dml.errors import InvalidSetting

_NULLS = {"null", "none", "~"}
_MAX_BYTES = 1 << 20


def read_tree(path: str | Path, root: type[BaseModel]) -> Any:
    """The tree in a file: JSON if its name ends in `.json`, else YAML.

    Args:
        path: a local file.
        root: the class of the section that the file describes.

    Raises:
        InvalidSetting: the file cannot be read, or contains a key twice.
    """
    try:
        content = _read_file(path)
        if Path(path).suffix.lower() == ".json":
            return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_refuse_duplicates)
        return parse_texts(yaml.load(content, _PlainLoader), root)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise InvalidSetting(
            f"A file of settings must be readable YAML or JSON; {path}: {problem}."
        ) from error


def _read_file(path: str | Path) -> bytes:
    """The content of a small regular file; a pipe is refused without waiting for a writer."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError("a pipe or a device is not read; write the settings into a file")
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes, which is too much for an experiment")
    return content


def parts_of(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that a field can hold; several if its `kind` decides."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for argument in get_args(annotation) for part in parts_of(argument)]


def kind_of(part: type[BaseModel]) -> str | None:
    """The `kind` that selects a section class, or None if it has no kind."""
    return part.model_fields["kind"].default if "kind" in part.model_fields else None


def part_for(annotation: Any, tree: Any) -> type[BaseModel] | None:
    """The section class that a tree describes; None if there is none of its kind."""
    parts = parts_of(annotation)
    kind = tree.get("kind") if isinstance(tree, dict) else None
    if len(parts) < 2 or kind is None:
        return parts[0] if parts else None
    return next((part for part in parts if kind_of(part) == kind), None)


def field_type(part: type[BaseModel] | None, name: str) -> Any:
    """The type of a section's field; None if it has no such field."""
    field = None if part is None else part.model_fields.get(name)
    return None if field is None else field.annotation


def accepts_only_numbers(annotation: Any) -> bool:
    """Whether a field accepts numbers, but neither booleans nor text."""
    types = {choice for choice in _choices(annotation) if choice is not NoneType}
    return bool(types) and types <= {int, float}


def parse_text(text: str, annotation: Any) -> Any:
    """A text converted to the type of a field, which pydantic then validates."""
    choices = list(_choices(annotation))
    types = [choice for choice in choices if choice is not NoneType]
    is_kind = text.lower() in map(kind_of, parts_of(annotation))  # such as the split `none`
    if text.lower() in _NULLS and len(types) < len(choices) and not is_kind:
        return None
    if types and all(map(_is_text, types)):
        return _unquoted(text)
    if types and all(get_origin(choice) is tuple for choice in types) and not text.startswith("["):
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        return [parse_text(part, _element(types[0], index)) for index, part in enumerate(parts)]
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicates)
    except InvalidSetting:
        raise
    except (ValueError, RecursionError):  # not JSON, or a number with more digits than Python accepts
        return text


def parse_texts(tree: Any, annotation: Any) -> Any:
    """A tree of plain texts converted to the types of a section's fields."""
    if isinstance(tree, dict):
        part = part_for(annotation, tree)
        return {name: parse_texts(value, field_type(part, name)) for name, value in tree.items()}
    if isinstance(tree, list):
        tuple_type = next((choice for choice in _choices(annotation) if get_origin(choice) is tuple), None)
        return [parse_texts(value, _element(tuple_type, index)) for index, value in enumerate(tree)]
    return parse_text(tree, annotation) if isinstance(tree, str) else tree


def to_yaml(part: BaseModel) -> str:
    """A section as YAML that `read_tree` can read."""
    text: str = yaml.safe_dump(part.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def _choices(annotation: Any) -> Iterator[Any]:
    """The types of a union, or the single type; none for a field that does not exist."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _choices(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for choice in get_args(annotation):
            yield from _choices(choice)
    elif annotation is not None:
        yield annotation


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(word, str) for word in get_args(annotation))
    return annotation in (str, Path)


def _element(annotation: Any, index: int) -> Any:
    """The type of a tuple's element; for `tuple[int, ...]` the same at every index."""
    elements = get_args(annotation)
    if not elements or elements[-1] is Ellipsis:
        return elements[0] if elements else None
    return elements[index] if index < len(elements) else None


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            pass
    return text


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidSetting(f"A setting must be given once; got {max(names, key=names.count)!r} again")
    return tree


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without type guessing: plain words except `null` stay text; no aliases, no duplicate keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [("tag:yaml.org,2002:null", yaml.resolver.Resolver.yaml_implicit_resolvers["~"][0][1])]
        for first in ("~", "n", "N", "")
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name) is not supported: write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(
                    f"a list or a section where a setting's name was expected, {key.start_mark}"
                )
        pairs = [(str(key.value), self.construct_object(value, deep=deep)) for key, value in node.value]
        return _refuse_duplicates(pairs)

"""Settings as people write them, `path.to.key=value` and YAML or JSON files, read as their fields want them.

| a field of | takes |
|---|---|
| text, or one of several words | the text as it stands, `2024` too; double quotes around it are left out |
| numbers, true or false | `1e-3`, `20`, `true` |
| several values | `[1, 10]` or `1,10` |
| a section | JSON, as `loss={"kind": "margin"}` |
| something that may be off | `null` |

Plain words of a YAML file are read the same way: `1e-3` is a number where one is wanted, `no` and `2024` stay
text where text is.
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

_NOTHING = {"null", "none", "~"}
_MAX_BYTES = 1 << 20


def read_tree(path: str | Path, root: type[BaseModel]) -> Any:
    """The tree in a file: JSON where its name ends in `.json`, else YAML.

    Args:
        path: of a local file.
        root: the section that the tree describes.

    Raises:
        InvalidSetting: the file cannot be read, or says the same thing twice.
    """
    try:
        content = _read_file(path)
        if Path(path).suffix.lower() == ".json":
            return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_doubles)
        return typed_tree(yaml.load(content, _PlainLoader), root)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise InvalidSetting(
            f"A file of settings must be readable YAML or JSON; {path}: {problem}."
        ) from error


def _read_file(path: str | Path) -> bytes:
    """A small regular file: opened without waiting for somebody who writes into a pipe, read with an end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError("a pipe or a device is not read; write the settings into a file")
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes, no experiment has")
    return content


def parts_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field can hold: several where its `kind` decides."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for each in get_args(annotation) for part in parts_of(each)]


def kind_of(part: type[BaseModel]) -> str | None:
    """The kind that a section is chosen by, where it is one of several."""
    return part.model_fields["kind"].default if "kind" in part.model_fields else None


def part_for(annotation: Any, tree: Any) -> type[BaseModel] | None:
    """The section a tree describes; None where there is none of its kind."""
    parts = parts_of(annotation)
    kind = tree.get("kind") if isinstance(tree, dict) else None
    if len(parts) < 2 or kind is None:
        return parts[0] if parts else None
    return next((part for part in parts if kind_of(part) == kind), None)


def field_type(part: type[BaseModel] | None, name: str) -> Any:
    """What a section's field takes; None where it has no such field."""
    field = None if part is None else part.model_fields.get(name)
    return None if field is None else field.annotation


def takes_only_numbers(annotation: Any) -> bool:
    """Whether a field takes numbers, and neither truth values nor text."""
    wanted = {each for each in _choices(annotation) if each is not NoneType}
    return bool(wanted) and wanted <= {int, float}


def typed(text: str, annotation: Any) -> Any:
    """A value as a field wants it, for pydantic to check."""
    choices = list(_choices(annotation))
    wanted = [each for each in choices if each is not NoneType]
    is_kind = text.lower() in map(kind_of, parts_of(annotation))  # as the split `none`
    if text.lower() in _NOTHING and len(wanted) < len(choices) and not is_kind:
        return None
    if wanted and all(map(_is_text, wanted)):
        return _unquoted(text)
    if wanted and all(get_origin(each) is tuple for each in wanted) and not text.startswith("["):
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        return [typed(part, _element(wanted[0], place)) for place, part in enumerate(parts)]
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except InvalidSetting:
        raise
    except (ValueError, RecursionError):  # no JSON, or a number of more digits than Python reads
        return text


def typed_tree(tree: Any, annotation: Any) -> Any:
    """A tree of plain texts as the fields of a section want them."""
    if isinstance(tree, dict):
        part = part_for(annotation, tree)
        return {name: typed_tree(value, field_type(part, name)) for name, value in tree.items()}
    if isinstance(tree, list):
        several = next((each for each in _choices(annotation) if get_origin(each) is tuple), None)
        return [typed_tree(value, _element(several, place)) for place, value in enumerate(tree)]
    return typed(tree, annotation) if isinstance(tree, str) else tree


def to_yaml(part: BaseModel) -> str:
    """A section as a YAML file that `read_tree` takes back."""
    text: str = yaml.safe_dump(part.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def _choices(annotation: Any) -> Iterator[Any]:
    """The types of a union, or the one there is; none for a field that does not exist."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _choices(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _choices(each)
    elif annotation is not None:
        yield annotation


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(word, str) for word in get_args(annotation))
    return annotation in (str, Path)


def _element(annotation: Any, place: int) -> Any:
    """What a tuple takes at a place; `tuple[int, ...]` the same everywhere."""
    elements = get_args(annotation)
    if not elements or elements[-1] is Ellipsis:
        return elements[0] if elements else None
    return elements[place] if place < len(elements) else None


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            pass
    return text


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidSetting(f"A setting must be given once; got {max(names, key=names.count)!r} again")
    return tree


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without guessing: every plain word stays text but `null`; no aliases, no key twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [("tag:yaml.org,2002:null", yaml.resolver.Resolver.yaml_implicit_resolvers["~"][0][1])]
        for first in ("~", "n", "N", "")
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name) where a value was expected: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(
                    f"a list or a section where a setting's name was expected, {key.start_mark}"
                )
        pairs = [(str(key.value), self.construct_object(value, deep=deep)) for key, value in node.value]
        return _without_doubles(pairs)

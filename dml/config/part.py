"""Base class of configuration sections: frozen, no unknown keys, settings replaced by `key=value`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from dml.config.text import accepts_only_numbers, field_type, kind_of, parse_text, part_for, parts_of
from dml.errors import InvalidSetting, did_you_mean

P = TypeVar("P", bound=BaseModel)
_KIND_ERRORS = ("union_tag_invalid", "union_tag_not_found")
_MAX_SHOWN = 200
_SECTION_ERRORS = ("model_type", "model_attributes_type")


class Part(BaseModel):
    """A section of the configuration: immutable, and a misspelled key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_bool_for_number(cls, tree: Any) -> Any:
        """pydantic converts true to 1, so `training.num_steps=true` would train one step."""
        for name, value in tree.items() if isinstance(tree, Mapping) else ():
            if isinstance(value, bool) and accepts_only_numbers(field_type(cls, name)):
                raise ValueError(f"{name} must be a number; got {str(value).lower()}.")
        return tree

    def overridden(self, assignments: Sequence[str]) -> Self:
        """A copy with settings replaced, each `path.to.key=value`, parsed as `dml.config.text` describes.

        A different `kind` replaces its whole section by that kind's defaults. Sections are assigned before
        their settings, so the order matters only if the same setting is named twice.

        Raises:
            InvalidSetting: an unknown key, or an invalid combination of values.
        """
        return parse(type(self), assigned(self, assignments))


def parse(kind: type[P], tree: Any) -> P:
    """The section that a JSON tree describes; raises InvalidSetting with every invalid setting."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise invalid_setting(error, kind, tree) from None


def assigned(config: BaseModel, assignments: Sequence[str]) -> dict[str, Any]:
    """A configuration's JSON tree with values replaced by `path.to.key=value`."""
    tree: dict[str, Any] = json.loads(config.model_dump_json())
    for path, text in sorted(map(_split, assignments), key=_sections_first):
        _assign(type(config), tree, path, text)
    return tree


def _split(assignment: str) -> tuple[list[str], str]:
    path, equals, text = assignment.partition("=")
    names = [name.strip() for name in path.split(".")]
    if not equals or not all(names):
        raise InvalidSetting(f"A setting must have the form path.to.key=value; got {_shortened(assignment)}.")
    return names, text.strip()


def _sections_first(assignment: tuple[list[str], str]) -> tuple[int, bool]:
    path, _ = assignment
    return len(path), path[-1] != "kind"


def _assign(root: type[BaseModel], tree: dict[str, Any], path: list[str], text: str) -> None:
    part, annotation = tree, root
    for name in path[:-1]:
        annotation = field_type(part_for(annotation, part), name)
        if part.get(name) is None:  # any setting of a section that is null turns it on
            part[name] = {}
        part = part[name]
        if not isinstance(part, dict):
            raise InvalidSetting(f"{'.'.join(path)!r} is not a setting: {name!r} has no settings.")
    if path[-1] == "kind" and len(parts_of(annotation)) > 1:
        if part.get("kind") != text:
            part.clear()
        part["kind"] = text
        return
    part[path[-1]] = parse_text(text, field_type(part_for(annotation, part), path[-1]))


def invalid_setting(error: ValidationError, kind: type[BaseModel], tree: Any) -> InvalidSetting:
    """pydantic's errors as one plain sentence each.

    Args:
        error: pydantic's error.
        kind: the section's class.
        tree: the section's input.
    """
    sentences: dict[str, list[str]] = {}
    findings = error.errors()
    for finding in findings:
        if finding["type"] == "too_short" and any(_is_below(other, finding) for other in findings):
            continue  # pydantic counts only valid elements, and reports that there were none
        location = _Location(finding["loc"], kind, tree)
        sentences.setdefault(location.path(finding), []).append(location.sentence(finding))
    lines = [f"{path} {' or '.join(dict.fromkeys(texts))}".strip() for path, texts in sentences.items()]
    return InvalidSetting("Settings must fit their schema. " + " | ".join(lines))


def _is_below(finding: ErrorDetails, other: ErrorDetails) -> bool:
    prefix = other["loc"]
    return len(finding["loc"]) > len(prefix) and finding["loc"][: len(prefix)] == prefix


def _shortened(value: Any) -> str:
    """A value as shown in a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text):,} characters)"


class _Location:
    """The path of an invalid setting as a user types it, and the values it accepts."""

    def __init__(self, location: Sequence[int | str], root: type[BaseModel], tree: Any) -> None:
        """pydantic's location also contains kinds and types; they are left out of the path."""
        self._root = root
        self._part: type[BaseModel] | None = root
        self._annotation: Any = root
        names: list[str] = []
        kinds: dict[str | None, type[BaseModel]] = {}
        for step in location:
            if step in kinds:
                self._part, kinds = kinds[step], {}
            elif self._part is not None and step in self._part.model_fields:
                tree = tree.get(step) if isinstance(tree, Mapping) else None
                self._annotation = field_type(self._part, str(step))
                self._part = part_for(self._annotation, tree)
                parts = parts_of(self._annotation)
                kinds = {kind_of(part): part for part in parts} if len(parts) > 1 else {}
                names.append(str(step))
            elif isinstance(step, int) or self._part is not None:
                names.append(str(step))
        self._names = names

    def path(self, finding: ErrorDetails) -> str:
        return ".".join([*self._names, *(["kind"] if finding["type"] in _KIND_ERRORS else [])])

    def sentence(self, finding: ErrorDetails) -> str:
        value, context = finding["input"], finding.get("ctx", {})
        if finding["type"] == "extra_forbidden":
            return self._unknown()
        if finding["type"] == "missing":
            return "must be given"
        if finding["type"] == "literal_error":
            words = str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
            return self._one_of(words, value)
        if finding["type"] in _KIND_ERRORS:
            kinds = [str(kind_of(part)) for part in parts_of(self._annotation)]
            value = value.get("kind") if isinstance(value, Mapping) else value
            return self._one_of(kinds, value)
        if finding["type"] in _SECTION_ERRORS and not self._names:
            return f"They must be names with values; got {_shortened(value)}."
        if finding["type"] in _SECTION_ERRORS:
            return (
                f"is a section of settings, not a setting; got {_shortened(value)}. "
                f"Name one of its settings, such as {self._example()}."
            )
        if finding["type"] == "too_short":
            return f"must have at least {context['min_length']}; got {_shortened(value)}"
        if finding["type"] == "string_pattern_mismatch":
            return f"must match {context['pattern']}; got {_shortened(value)}"
        text = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "value_error":
            return f"is invalid: {text}" if self._names else text
        return f"{text.removeprefix('Input ')}; got {_shortened(value)}"

    def _one_of(self, words: list[str], value: Any) -> str:
        near = "" if value is None else did_you_mean(str(value), words)  # None is not a misspelt "none"
        return f"must be one of {', '.join(words)}; got {_shortened(value)}.{near}"

    def _example(self) -> str:
        assert self._part is not None
        name = "kind" if len(parts_of(self._annotation)) > 1 else next(iter(self._part.model_fields))
        return ".".join([*self._names, name]) + "=..."

    def _unknown(self) -> str:
        assert self._part is not None
        name = self._names[-1]
        known = list(self._part.model_fields)
        kind = kind_of(self._part)
        of_kind = f" of kind {kind!r}" if kind is not None and len(parts_of(self._annotation)) > 1 else ""
        near = did_you_mean(name, known)
        if not near:
            elsewhere = {path.rpartition(".")[2]: path for path in _paths(self._root)}
            exact = elsewhere.get(name)
            near = f" Did you mean {exact!r}?" if exact is not None else ""
            others = [kind_of(part) for part in parts_of(self._annotation) if name in part.model_fields]
            if others:
                near = f" Kinds that have it: {', '.join(map(str, others))}."
        return f"is not a setting{of_kind}.{near} The settings are {', '.join(known)}."


def _paths(part: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The paths of all settings of all kinds; of equal names, the outermost comes last."""
    for name, field in part.model_fields.items():
        for inner in parts_of(field.annotation):
            yield from _paths(inner, f"{prefix}{name}.")
    for name in part.model_fields:
        yield f"{prefix}{name}"

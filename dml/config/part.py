"""What every configuration is: frozen, unknown keys refused, settings replaced by `key=value`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from dml.config.text import field_type, kind_of, part_for, parts_of, takes_only_numbers, typed
from dml.errors import InvalidSetting, did_you_mean

P = TypeVar("P", bound=BaseModel)
_OF_KIND = ("union_tag_invalid", "union_tag_not_found")
_MAX_SHOWN = 200
_NO_SECTION = ("model_type", "model_attributes_type")


class Part(BaseModel):
    """A section of the configuration: immutable, and a misspelled key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_is_a_number(cls, tree: Any) -> Any:
        """pydantic takes true for 1, so that `training.num_steps=true` would train one step."""
        for name, value in tree.items() if isinstance(tree, Mapping) else ():
            if isinstance(value, bool) and takes_only_numbers(field_type(cls, name)):
                raise ValueError(f"{name} must be a number; got {str(value).lower()}.")
        return tree

    def overridden(self, assignments: Sequence[str]) -> Self:
        """A copy with settings replaced, each `path.to.key=value`, read as `dml.config.text` says.

        Another `kind` replaces its whole section by that kind's defaults. What names a section comes before
        what names a setting in it, so the order matters only where the same setting is named twice.

        Raises:
            InvalidSetting: an unknown key, or values that do not fit together.
        """
        return parse(type(self), assigned(self, assignments))


def parse(kind: type[P], tree: Any) -> P:
    """The section a JSON tree describes; raises InvalidSetting naming every setting that is wrong."""
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
        raise InvalidSetting(f"A setting must read path.to.key=value; got {_shown(assignment)}.")
    return names, text.strip()


def _sections_first(assignment: tuple[list[str], str]) -> tuple[int, bool]:
    path, _ = assignment
    return len(path), path[-1] != "kind"


def _assign(root: type[BaseModel], tree: dict[str, Any], path: list[str], text: str) -> None:
    part, annotation = tree, root
    for name in path[:-1]:
        annotation = field_type(part_for(annotation, part), name)
        if part.get(name) is None:  # a part that is off is turned on by any setting of it
            part[name] = {}
        part = part[name]
        if not isinstance(part, dict):
            raise InvalidSetting(f"{'.'.join(path)!r} is not a setting: {name!r} has no parts.")
    if path[-1] == "kind" and len(parts_of(annotation)) > 1:
        if part.get("kind") != text:
            part.clear()
        part["kind"] = text
        return
    part[path[-1]] = typed(text, field_type(part_for(annotation, part), path[-1]))


def invalid_setting(error: ValidationError, kind: type[BaseModel], tree: Any) -> InvalidSetting:
    """pydantic's findings as one sentence each, without its jargon.

    Args:
        error: what it found.
        kind: the section that was to be made.
        tree: from what.
    """
    findings: dict[str, list[str]] = {}
    found = error.errors()
    for finding in found:
        if finding["type"] == "too_short" and any(_is_below(each, finding) for each in found):
            continue  # pydantic counts the elements that are valid, and says there were none
        where = _Where(finding["loc"], kind, tree)
        findings.setdefault(where.path(finding), []).append(where.sentence(finding))
    sentences = [f"{path} {' or '.join(dict.fromkeys(each))}".strip() for path, each in findings.items()]
    return InvalidSetting("Settings must fit their schema. " + " | ".join(sentences))


def _is_below(finding: ErrorDetails, other: ErrorDetails) -> bool:
    place = other["loc"]
    return len(finding["loc"]) > len(place) and finding["loc"][: len(place)] == place


def _shown(value: Any) -> str:
    """A value in a message: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text):,} characters)"


class _Where:
    """The place of a finding, as a user would type it, and what could stand there."""

    def __init__(self, location: Sequence[int | str], root: type[BaseModel], tree: Any) -> None:
        """pydantic's location names kinds and types beside settings; those are left out."""
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
        return ".".join([*self._names, *(["kind"] if finding["type"] in _OF_KIND else [])])

    def sentence(self, finding: ErrorDetails) -> str:
        came, context = finding["input"], finding.get("ctx", {})
        if finding["type"] == "extra_forbidden":
            return self._unknown()
        if finding["type"] == "missing":
            return "must be given"
        if finding["type"] == "literal_error":
            words = str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
            return self._one_of(words, came)
        if finding["type"] in _OF_KIND:
            kinds = [str(kind_of(part)) for part in parts_of(self._annotation)]
            came = came.get("kind") if isinstance(came, Mapping) else came
            return self._one_of(kinds, came)
        if finding["type"] in _NO_SECTION and not self._names:
            return f"They must be names with values; got {_shown(came)}."
        if finding["type"] in _NO_SECTION:
            return (
                f"is a section of settings, not one; got {_shown(came)}. "
                f"Name one of them, as {self._example()}."
            )
        if finding["type"] == "too_short":
            return f"must have at least {context['min_length']}; got {_shown(came)}"
        if finding["type"] == "string_pattern_mismatch":
            return f"must match {context['pattern']}; got {_shown(came)}"
        text = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "value_error":
            return f"cannot be followed: {text}" if self._names else text
        return f"{text.removeprefix('Input ')}; got {_shown(came)}"

    def _one_of(self, words: list[str], came: Any) -> str:
        near = "" if came is None else did_you_mean(str(came), words)  # nothing is not nearly "none"
        return f"must be one of {', '.join(words)}; got {_shown(came)}.{near}"

    def _example(self) -> str:
        assert self._part is not None
        name = "kind" if len(parts_of(self._annotation)) > 1 else next(iter(self._part.model_fields))
        return ".".join([*self._names, name]) + "=..."

    def _unknown(self) -> str:
        assert self._part is not None
        name = self._names[-1]
        known = list(self._part.model_fields)
        kind = kind_of(self._part)
        of = f" of kind {kind!r}" if kind is not None and len(parts_of(self._annotation)) > 1 else ""
        near = did_you_mean(name, known)
        if not near:
            elsewhere = {path.rpartition(".")[2]: path for path in _paths(self._root)}
            exact = elsewhere.get(name)
            near = f" Did you mean {exact!r}?" if exact is not None else ""
            others = [kind_of(each) for each in parts_of(self._annotation) if name in each.model_fields]
            if others:
                near = f" Kinds that have it: {', '.join(map(str, others))}."
        return f"is no setting{of}.{near} There are {', '.join(known)}."


def _paths(part: type[BaseModel], before: str = "") -> Iterator[str]:
    """Every setting's path, of all kinds; the outermost of a name last."""
    for name, field in part.model_fields.items():
        for inner in parts_of(field.annotation):
            yield from _paths(inner, f"{before}{name}.")
    for name in part.model_fields:
        yield f"{before}{name}"

"""What every configuration is: frozen, unknown keys refused, settings replaced by `key=value`."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dml.errors import InvalidSetting


class Part(BaseModel):
    """A section of the configuration: immutable, and a misspelled key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def assigned(config: Part, assignments: list[str]) -> dict[str, Any]:
    """A configuration's JSON tree with values replaced by `path.to.key=value`."""
    tree: dict[str, Any] = json.loads(config.model_dump_json())
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise InvalidSetting(f"A setting must read path.to.key=value; got {assignment!r}.")
        *parents, key = path.split(".")
        part = tree
        for parent in parents:
            if part.get(parent) is None:  # a part that is off is turned on by any setting of it
                part[parent] = {}
            part = part[parent]
            if not isinstance(part, dict):
                raise InvalidSetting(f"{path!r} is not a setting: {parent!r} has no parts.")
        try:
            part[key] = json.loads(text)
        except json.JSONDecodeError:
            part[key] = text
    return tree


def invalid_setting(error: ValidationError) -> InvalidSetting:
    """pydantic's findings as one sentence each, without its jargon."""
    findings = []
    for finding in error.errors():
        where = ".".join(str(part) for part in finding["loc"]) or "settings"
        came = f"; got {finding['input']!r}" if finding["type"] != "value_error" else ""
        findings.append(f"{where}: {finding['msg'].removeprefix('Value error, ')}{came}")
    return InvalidSetting("Settings must fit their schema. " + " | ".join(findings))

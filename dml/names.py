"""Names that become folders: datasets, models and indexes, and the versions of them.

Every name and version that comes from outside passes here before it is part of a path.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from dml.errors import InvalidSetting

MAX_LENGTH = 100
_NAME = re.compile(r"[a-z][a-z0-9._-]*")
_VERSION = re.compile(r"[a-z0-9][a-z0-9-]*")
_READ_AS_VALUES = ("true", "false", "null", "nan")  # `prefect deployment run -p name=true` sends no text


def check_name(name: str, kind: str = "name") -> str:
    """The name itself, where it is one.

    Args:
        name: of a dataset, model or index.
        kind: what it names, for the message.

    Raises:
        InvalidSetting: it is no name: a letter a-z, then a-z, 0-9, ".", "_" and "-".
    """
    if _NAME.fullmatch(name) and len(name) <= MAX_LENGTH and name not in _READ_AS_VALUES:
        return name
    suggested = suggest_name(name)
    raise InvalidSetting(
        f"A{'n' * (kind[0] in 'aeiou')} {kind} must start with a letter a-z, hold only a-z, 0-9, '.', '_' "
        f"and '-', at most {MAX_LENGTH} in all, and not be one of {', '.join(_READ_AS_VALUES)}; "
        f"got {name!r}. " + (f"Use {suggested!r}." if suggested else "Give another.")
    )


def suggest_name(text: str) -> str | None:
    """The nearest name to a text: `My Shop (2)` gives `my-shop-2`; None where nothing of it is left."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:MAX_LENGTH].rstrip("._-")
    if name and not name[0].isalpha():
        name = f"d-{name}"[:MAX_LENGTH]
    return None if not name or name in _READ_AS_VALUES else name


def split_version(text: str, kind: str = "name") -> tuple[str, str | None]:
    """NAME or NAME@VERSION taken apart.

    Raises:
        InvalidSetting: neither; a version is what `dml datasets` and `dml indexes` show after the "@".
    """
    name, at, version = text.partition("@")
    check_name(name, kind)
    if at and not is_version(version):
        raise InvalidSetting(
            f"A version must be as the listings show it, twelve digits 0-9 and a-f; got {version!r} in "
            f"{text!r}. Leave @{version} out for the current one."
        )
    return name, version if at else None


def is_version(text: str) -> bool:
    """Whether a text can be the folder of a version."""
    return bool(_VERSION.fullmatch(text)) and len(text) <= MAX_LENGTH


Name = Annotated[str, AfterValidator(check_name), Field(json_schema_extra={"pattern": "^[a-z][a-z0-9._-]*$"})]
"""A validated name, for settings and refs."""

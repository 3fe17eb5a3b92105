"""Names and versions of datasets, models and indexes, and of source layouts: checked, parsed, suggested.

Every name and version from a user is checked here before it becomes part of a path.
"""

import re
from typing import Literal

from dml.errors import InvalidSetting

MAX_LENGTH = 100
MAX_ID_LENGTH = 1000
"""Characters of the id or label of what is enrolled, at most; the service takes as many in a path."""
_NAME = re.compile(r"[a-z][a-z0-9._-]*")
_VERSION = re.compile(r"[a-z0-9][a-z0-9-]*")
_JSON_LITERALS = ("true", "false", "null", "nan")  # `prefect deployment run -p name=true` sends a bool


def check_name(name: str, kind: str = "name") -> str:
    """Return a valid name unchanged.

    Args:
        name: of a dataset, model or index: a letter a-z, then a-z, 0-9, ".", "_" and "-".
        kind: what it names, for the message.

    Raises:
        InvalidSetting: the name is invalid.
    """
    if is_name(name):
        return name
    suggested = suggest_name(name)
    raise InvalidSetting(
        f"A{'n' * (kind[0] in 'aeiou')} {kind} must start with a letter a-z, hold only a-z, 0-9, '.', '_' "
        f"and '-', at most {MAX_LENGTH} in all, and not be one of {', '.join(_JSON_LITERALS)}; "
        f"got {name!r}. " + (f"Use {suggested!r}." if suggested else "Give another.")
    )


def is_name(text: str) -> bool:
    """Whether a text is valid as a name."""
    return bool(_NAME.fullmatch(text)) and len(text) <= MAX_LENGTH and text not in _JSON_LITERALS


def suggest_name(text: str) -> str | None:
    """The nearest valid name to a text: `my-shop-2` for `My Shop (2)`; None if no character is usable."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:MAX_LENGTH].rstrip("._-")
    if name and not name[0].isalpha():
        name = f"d-{name}"[:MAX_LENGTH]
    return None if not name or name in _JSON_LITERALS else name


def split_version(text: str, kind: str = "name") -> tuple[str, str | None]:
    """Split NAME or NAME@VERSION into its parts; the version is None if there is none.

    Raises:
        InvalidSetting: it is neither; `dml datasets` and `dml indexes` show versions after the "@".
    """
    name, at, version = text.partition("@")
    check_name(name, kind)
    if at and not is_version(version):
        raise InvalidSetting(
            f"A version must be as the listings show it, twelve digits 0-9 and a-f; got {version!r} in "
            f"{text!r}. Leave @{version} out for the current one."
        )
    return name, version if at else None


def versioned(name: str, version: str | None) -> str:
    """NAME@VERSION, as users type it; the name alone if the version is None.

    Example:
        >>> versioned("shop", "0123456789ab")
        'shop@0123456789ab'
    """
    return name if version is None else f"{name}@{version}"


def is_version(text: str) -> bool:
    """Whether a text is valid as the folder name of a version."""
    return bool(_VERSION.fullmatch(text)) and len(text) <= MAX_LENGTH


SourceLayout = Literal[
    "auto",
    "folder",
    "omniglot",
    "cars196",
    "cub200",
    "sop",
    "in-shop",
    "market1501",
    "mnist",
    "tiny-imagenet",
    "manifest",
    "glyphs",
]
"""Layouts of a source of images; here and not in `dml.config`, which `dml ingest --help` need not import."""

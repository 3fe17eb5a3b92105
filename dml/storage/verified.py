"""Which files of local artefacts were hashed already, by their sizes and times; in the machine's cache."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dml.storage.cache import cache_dir
from dml.storage.digest import digest_of
from dml.storage.files import is_remote, join, resolve, write_bytes


def unknown_files(uri: str, files: Mapping[str, Any]) -> list[str]:
    """The files that were not hashed since they last changed, or were with another result."""
    known = _read(uri)
    return [name for name, entry in files.items() if known.get(name) != _stamp(uri, name, entry["sha256"])]


def remember(uri: str, files: Mapping[str, Any]) -> None:
    """Keep that all these files have the SHA-256 that the manifest gives."""
    if is_remote(uri):
        return
    stamps = {name: _stamp(uri, name, entry["sha256"]) for name, entry in files.items()}
    with suppress(OSError):  # a cache that cannot be written costs time, not correctness
        write_bytes(str(_memo(uri)), json.dumps(stamps).encode())


def _stamp(uri: str, name: str, sha256: str) -> list[Any]:
    found = os.stat(resolve(join(uri, name)))
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, sha256]


def _read(uri: str) -> dict[str, Any]:
    try:
        content = json.loads(_memo(uri).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _memo(uri: str) -> Path:
    return cache_dir() / "verified" / f"{digest_of(resolve(uri))[:32]}.json"

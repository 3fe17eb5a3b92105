"""Record of local artefact files whose SHA-256 was checked, by size and times; kept in the cache."""

import json
import os
import posixpath
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dml.storage.cache import cache_dir
from dml.storage.digest import digest_of
from dml.storage.files import is_remote, join, resolve, write_bytes


def unknown_files(uri: str, files: Mapping[str, Any]) -> list[str]:
    """The files whose SHA-256 was not checked since they last changed, or was different."""
    known = _read(uri)
    return [name for name, entry in files.items() if known.get(name) != _stamp(uri, name, entry["sha256"])]


def remember(uri: str, files: Mapping[str, Any]) -> None:
    """Record that all these files have the SHA-256 in the manifest."""
    if is_remote(uri):
        return
    stamps = {name: _stamp(uri, name, entry["sha256"]) for name, entry in files.items()}
    with suppress(OSError):  # a cache that cannot be written costs time, not correctness
        write_bytes(str(_memo(uri)), json.dumps(stamps).encode())


def _stamp(uri: str, name: str, sha256: str) -> list[Any]:
    status = os.stat(resolve(posixpath.normpath(join(uri, name))))
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, sha256]


def _read(uri: str) -> dict[str, Any]:
    try:
        content = json.loads(_memo(uri).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _memo(uri: str) -> Path:
    return cache_dir() / "verified" / f"{digest_of(resolve(uri))[:32]}.json"

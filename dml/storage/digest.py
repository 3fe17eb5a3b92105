"""Naming something by what it was made from."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_OWN = "own_sha256"


def digest_of(*parts: Any) -> str:
    """Hex SHA-256 of JSON-serialisable values."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def with_own_digest(content: Mapping[str, Any]) -> bytes:
    """A JSON object as a file that shows when it is changed; `without_own_digest` reads it."""
    kept = json.loads(json.dumps(content))
    return json.dumps({**kept, _OWN: digest_of(kept)}, indent=1).encode()


def without_own_digest(content: bytes) -> dict[str, Any] | None:
    """The object again; None where the file is not as it was written."""
    try:
        held = json.loads(content)
    except ValueError:
        return None
    return held if isinstance(held, dict) and held.pop(_OWN, None) == digest_of(held) else None


def digest_of_bytes(content: bytes) -> str:
    """Hex SHA-256 of bytes at hand."""
    return hashlib.sha256(content).hexdigest()

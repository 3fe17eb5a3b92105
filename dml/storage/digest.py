"""Naming something by what it was made from."""

import hashlib
import json
from typing import Any


def digest_of(*parts: Any) -> str:
    """Hex SHA-256 of JSON-serialisable values."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def digest_of_bytes(content: bytes) -> str:
    """Hex SHA-256 of bytes at hand."""
    return hashlib.sha256(content).hexdigest()

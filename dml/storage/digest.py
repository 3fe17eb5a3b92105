"""SHA-256 digests of JSON values and bytes, and JSON files that carry their own digest."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_DIGEST_KEY = "own_sha256"


def digest_of(*parts: Any) -> str:
    """Hex SHA-256 of JSON-serialisable values."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def encode_checked(content: Mapping[str, Any]) -> bytes:
    """A JSON object as bytes that include its digest; `decode_checked` reads it."""
    plain = json.loads(json.dumps(content))
    return json.dumps({**plain, _DIGEST_KEY: digest_of(plain)}, indent=1).encode()


def decode_checked(content: bytes) -> dict[str, Any] | None:
    """The object that `encode_checked` wrote; None if the bytes were changed."""
    try:
        decoded = json.loads(content)
    except ValueError:
        return None
    is_valid = isinstance(decoded, dict) and decoded.pop(_DIGEST_KEY, None) == digest_of(decoded)
    return decoded if is_valid else None


def digest_of_bytes(content: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()

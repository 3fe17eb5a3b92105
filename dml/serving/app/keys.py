"""API keys: who may do what in which gallery. Only their SHA-256 is kept, in a file of mode 600.

A key is 32 random bytes, so a fast hash without salt is as safe as a slow one: nobody can guess it.
"""

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact
from dml.names import check_name
from dml.serving.app.audit import Action, AuditLog
from dml.storage import exclusive

Permission = Literal["read", "enrol", "forget", "admin"]
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
_PREFIX = "dml_"
_ALL = "*"


class Key(BaseModel):
    """A key as it is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="eight hex digits, in logs and in the audit log")
    name: str = Field(description="who has it")
    sha256: str = Field(description="hex, of the key")
    permissions: list[Permission] = Field(description="admin includes all of them")
    galleries: list[str] = Field(description="names; empty: all")
    created: datetime = Field(description="UTC")


class _KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: list[Key] = []


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    id: str
    """Of the key; "local" where none is needed."""
    name: str
    permissions: frozenset[Permission]
    galleries: frozenset[str]
    """Empty: all."""

    @property
    def label(self) -> str:
        """For the log and the audit log."""
        return self.id if self.name == self.id else f"{self.id} {self.name}"

    def may(self, permission: Permission, gallery: str | None) -> bool:
        """Whether it has a permission in a gallery; None: in some gallery."""
        has = permission in self.permissions or "admin" in self.permissions
        return has and (gallery is None or not self.galleries or gallery in self.galleries)


LOCAL = Caller("local", "local", frozenset(PERMISSIONS), frozenset())
"""Of a service that asks for no keys."""


class Keys:
    """The keys of a file, read again when it changes.

    Raises:
        InvalidSetting: others may read the file.
        CorruptArtifact: it holds no keys.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_at: tuple[int, int] | None = None
        self._keys: tuple[Key, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Read the file if it was changed; an open service forgets revoked keys by it.

        Raises:
            MissingArtifact: its folder has gone, as with a disk that is no longer mounted; the keys stay.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            if self._read_at is not None and not self.path.parent.is_dir():
                raise MissingArtifact(
                    f"The folder of the API keys must be there; {self.path.parent} is not. Mount it again."
                ) from None
            self._keys, self._read_at = (), None
            return
        version = (status.st_mtime_ns, status.st_ino)
        if version != self._read_at:
            self._keys, self._read_at = tuple(read_keys(self.path)), version

    def __len__(self) -> int:
        return len(self._keys)

    def caller(self, presented: str) -> Caller | None:
        """Who has this key; None: nobody. Takes as long whichever key it is."""
        digest = _digest(presented)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            return None
        return Caller(found.id, found.name, frozenset(found.permissions), frozenset(found.galleries))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def read_keys(path: Path) -> list[Key]:
    """The keys of a file; none where there is no file.

    Raises:
        InvalidSetting: others may read it.
        CorruptArtifact: it holds no keys.
    """
    try:
        status = path.stat()
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o037:  # its group may read it: so a pod's user reads a secret of Kubernetes
        raise InvalidSetting(
            f"A file of API keys must be closed to others than its owner; {path} has mode {mode:o}. Do: "
            f"chmod 600 {path}."
        )
    try:
        return _KeyFile.model_validate_json(content).keys
    except ValidationError as error:
        raise CorruptArtifact(
            f"{path} must hold API keys; it does not ({error.error_count()} mistakes). Restore it, or remove "
            "it and make new keys."
        ) from None


def audit_beside(path: Path) -> Path:
    """The audit log that says who made and revoked the keys of a file: of a store that of its service."""
    return path.with_name("audit.jsonl")


def make_key(
    path: Path, name: str, permissions: Sequence[str], galleries: Sequence[str] = (), *, who: str
) -> tuple[Key, str]:
    """Add a key to a file, and say so in the audit log beside it.

    Args:
        path: the file; it is made where there is none.
        name: who gets it.
        permissions: of PERMISSIONS.
        galleries: names; none: all.
        who: makes it, for the audit log.

    Returns:
        The key as it is kept, and the key itself, which is nowhere else.

    Raises:
        InvalidSetting: no permission, an unknown one, no name, or an audit log that cannot be written: then
            no key is made.
    """
    unknown = [permission for permission in permissions if permission not in PERMISSIONS]
    if unknown or not permissions:
        raise InvalidSetting(
            f"permissions must be of {', '.join(PERMISSIONS)}; got {', '.join(unknown) or 'none'}. read "
            "searches, enrol adds and changes, forget removes, admin may all."
        )
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise InvalidSetting(f"A key must name who has it, in at most 100 characters; got {name!r}. Name it.")
    for gallery in galleries:
        check_name(gallery, "gallery")
    secret = _PREFIX + secrets.token_urlsafe(32)
    key = Key(
        id=secrets.token_hex(4),
        name=name,
        sha256=_digest(secret),
        permissions=sorted(set(permissions), key=list(PERMISSIONS).index),
        galleries=sorted(set(galleries)),
        created=datetime.now(UTC),
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive(_lock_of(path)):
        former = read_keys(path)
        _log(path, "make_key", key, who)
        _write(path, [*former, key])
    return key, secret


def revoke_key(path: Path, key_id: str, *, who: str) -> Key:
    """Remove a key from a file; open services refuse it within a second. The audit log beside it says so.

    Args:
        path: the file.
        key_id: of the key.
        who: revokes it, for the audit log.

    Raises:
        MissingArtifact: there is no such key.
        InvalidSetting: the audit log cannot be written: the key is revoked all the same.
    """
    if not path.exists():
        raise MissingArtifact(f"A key must exist to be revoked; there is no file {path}. Check --store.")
    with exclusive(_lock_of(path)):
        keys = read_keys(path)
        found = [key for key in keys if key.id == key_id]
        if not found:
            there = ", ".join(key.id for key in keys) or "none"
            raise MissingArtifact(f"A key must exist to be revoked; {key_id!r} is none of {there}.")
        _write(path, [key for key in keys if key.id != key_id])
        _log(path, "revoke_key", found[0], who)
    return found[0]


def _log(path: Path, action: Action, key: Key, who: str) -> None:
    """Before a key is made, which nobody might know of, and after it is revoked, which must not fail."""
    audit = AuditLog(audit_beside(path))
    try:
        audit.append(
            who=who,
            address="",
            request_id="",
            action=action,
            gallery="",
            identity=key.name,
            ids=[key.id],
            outcome="done",
        )
    except OSError as error:
        done = f"key {key.id} is revoked" if action == "revoke_key" else "no key was made"
        raise InvalidSetting(
            f"Who makes and revokes keys must be in the audit log {audit.path}; it cannot be written: "
            f"{error.strerror}, and {done}. Mend it."
        ) from None


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Readers see the former file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_KeyFile(keys=list(keys)).model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()

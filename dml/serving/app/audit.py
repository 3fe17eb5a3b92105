"""The audit log: who enrolled, changed, forgot or corrected what, and when. No images, no vectors, no keys.

One JSON object a line, in a file that is only ever appended to. Each line holds the SHA-256 of the line
before, so that a line that was changed or taken out shows.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dml.errors import CorruptArtifact

logger = logging.getLogger(__name__)

Action = Literal["enrol", "update", "forget", "correct", "remove", "revoke", "make_key", "revoke_key"]
Outcome = Literal["done", "refused", "failed"]
_FIRST = "0" * 64
_TAIL_BYTES = 1 << 20
_MOST_IDS = 100
_ROOM_BYTES = 1 << 20
"""Twice the longest line: ids have at most 1,000 characters."""


class AuditEntry(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    when: datetime = Field(description="UTC")
    who: str = Field(
        description="id and name of the API key; local: none was needed. Of keys: the user of the machine"
    )
    address: str = Field(description="of the client; empty: `dml keys` did it")
    request_id: str = Field(description="empty: `dml keys` did it")
    action: Action
    gallery: str = Field(description="or dataset; empty: of keys")
    identity: str | None = Field(
        None, description="the label, of a correction the new one; of a key who has it"
    )
    ids: list[str] = Field([], description="of items, or of a key, the first 100 of them")
    num_ids: int = 0
    revision: int | None = Field(None, description="of the gallery; null: nothing was written to one")
    version: str | None = Field(None, description="of the dataset that was made; null: none was")
    outcome: Outcome
    former: str = Field(_FIRST, description="SHA-256 of the line before; of the first line zeros")


class AuditLog:
    """A file that several processes append to.

    Beside it a file of the same name and `.room` sets space aside, as disk and quota count it. A line that
    finds no other space is written in its place. The next write finds none set aside, and is refused before
    it is done.

    Args:
        path: made with mode 600 where it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._room = path, path.with_name(f"{path.name}.room")
        self._missed: list[AuditEntry] = []

    def append(
        self,
        *,
        who: str,
        address: str,
        request_id: str,
        action: Action,
        gallery: str,
        outcome: Outcome,
        identity: str | None = None,
        ids: Sequence[str] = (),
        revision: int | None = None,
        version: str | None = None,
    ) -> AuditEntry:
        """Write one line; it is on the disk when this returns.

        Raises:
            OSError: it could not be written; this process does so before it writes another.
        """
        entry = AuditEntry(
            when=datetime.now(UTC),
            who=who,
            address=address,
            request_id=request_id,
            action=action,
            gallery=gallery,
            identity=identity,
            ids=list(ids[:_MOST_IDS]),
            num_ids=len(ids),
            revision=revision,
            version=version,
            outcome=outcome,
        )
        try:
            with self._locked() as descriptor:
                self._append_missed(descriptor)
                return self._append(descriptor, entry)
        except OSError:
            self._missed.append(entry)
            raise

    def require_writable(self) -> None:
        """Raise OSError where no line can be appended, as on a full disk or beyond a quota."""
        with self._locked() as descriptor:
            self._append_missed(descriptor)
            self._set_room_aside()

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, which no other thread or process writes meanwhile.

        The folders above are not made: a store that is away is not begun anew.
        """
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _append_missed(self, descriptor: int) -> None:
        while self._missed:
            self._append(descriptor, self._missed[0])
            del self._missed[0]

    def _append(self, descriptor: int, entry: AuditEntry) -> AuditEntry:
        entry = entry.model_copy(update={"former": _digest_of_last(descriptor)})
        text = json.dumps(entry.model_dump(mode="json"), ensure_ascii=False) + "\n"
        line = text.encode("utf-8", "replace")
        try:
            _write_whole(descriptor, line)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._room.unlink(missing_ok=True)
            _write_whole(descriptor, line)
        return entry

    def _set_room_aside(self) -> None:
        with suppress(FileNotFoundError):
            if self._room.stat().st_size >= _ROOM_BYTES:
                return
        try:
            descriptor = os.open(self._room, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except PermissionError:  # in this folder the log alone may be written: then free space must do
            disk = os.statvfs(self.path)
            if disk.f_blocks and disk.f_bavail * disk.f_frsize < _ROOM_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            return
        try:
            _write_whole(descriptor, os.urandom(_ROOM_BYTES))  # zeros take no space on some disks
        except OSError:
            self._room.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def _write_whole(descriptor: int, content: bytes) -> None:
    """Append a line, or nothing: half a line, as of a full disk, would look like one that was changed."""
    size = os.fstat(descriptor).st_size
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _digest_of_last(descriptor: int) -> str:
    """The SHA-256 of the file's last line; a line that a lost power cut short counts as it is."""
    size = os.fstat(descriptor).st_size
    if not size:
        return _FIRST
    start = max(size - _TAIL_BYTES, 0)
    tail = os.pread(descriptor, size - start, start)
    if not tail.endswith(b"\n"):
        os.write(descriptor, b"\n")
    last = tail.rstrip(b"\n").rpartition(b"\n")[2]
    return hashlib.sha256(last).hexdigest()


def read_audit(path: Path) -> Iterator[AuditEntry]:
    """The entries of a log, the oldest first.

    Raises:
        CorruptArtifact: a line was changed, or one before it taken out.
    """
    former = _FIRST
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.rstrip(b"\n")
            try:
                entry = AuditEntry.model_validate_json(text)
            except ValidationError:  # the next line must say that it was so when that was written
                logger.warning(
                    "line %s of %s is cut short, as by a lost power: nothing is known of it", number, path
                )
                former = hashlib.sha256(text).hexdigest()
                continue
            if entry.former != former:
                raise CorruptArtifact(
                    f"{path} must be as it was written; line {number} was changed, or one before it taken "
                    "out. Compare it with a copy."
                )
            former = hashlib.sha256(text).hexdigest()
            yield entry

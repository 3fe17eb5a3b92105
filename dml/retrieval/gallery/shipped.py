"""The log of a gallery in a store on S3: its transactions are segments there, and each machine has a copy.

    transaction in the copy -> segment in the store, if there is none of its number -> commit in the copy

The segment is what makes a transaction durable. A machine that wrote one and was killed before its copy had
it reads it again; of two machines that write the same number the second takes the other's transaction, and
does its own again. The copy is an SQLite file in the cache of this machine, and can be made again.
"""

import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dml import storage
from dml.errors import (
    CorruptArtifact,
    DmlError,
    GalleryBusy,
    GalleryUnavailable,
    IncompatibleArtifact,
    WriteCommitted,
)
from dml.retrieval.gallery.log import ERASED, Entry, Log, T, erased_id
from dml.retrieval.gallery.segments import Listed, Logged, Segment, Segments, compacted, cover, name_of

logger = logging.getLogger(__name__)

HOLD_S = 60.0
"""How long a process that holds the log is waited for, by the clock of the store: it may have been killed."""
_SEGMENTS_AT_ONCE = 64
_PAUSE_S = 0.05
_TRIES = 5
_TABLES = """
CREATE TABLE IF NOT EXISTS copy (
    log TEXT NOT NULL, segment INTEGER NOT NULL, etag TEXT NOT NULL, hold TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS held_items (
    id TEXT NOT NULL, segment TEXT NOT NULL, is_forgotten INTEGER NOT NULL, PRIMARY KEY (id, segment)
);
INSERT INTO copy SELECT '', 0, '', '' WHERE NOT EXISTS (SELECT 1 FROM copy)"""


class _Held(Exception):
    """Another process holds the log."""


def open_shipped_log(
    path: Path, folder: str, *, create: bool, busy_timeout_s: float, hold_s: float = HOLD_S
) -> Log | None:
    """The log of a gallery in a store on S3, up to date; None: nothing was ever enrolled or forgotten.

    Args:
        path: of this machine's copy.
        folder: `galleries/NAME` of the store.
        create: begin one where there is none.
        busy_timeout_s: how long to wait for a transaction of another process, seconds.
        hold_s: how long to wait for a process that holds the log, seconds.

    Raises:
        CorruptArtifact: a segment is missing, or not as it was written.
        GalleryUnavailable: S3 cannot be reached.
    """
    segments = Segments(folder)
    with _reaching(segments):
        is_there = segments.any()
    if not is_there and not create and not path.exists():
        return None
    for _ in range(_TRIES):
        try:
            log = ShippedLog(path, segments, busy_timeout_s=busy_timeout_s, hold_s=hold_s)
        except _OfFormerLog:
            continue
        except (CorruptArtifact, IncompatibleArtifact) as error:
            if isinstance(error, _Damaged):
                raise
            logger.warning("this machine's copy of a log is made again: %s", error)
            remove_copy(path)
            continue
        if not log.is_replaced and (create or not log.is_empty):
            return log
        log.close()
        if not create:
            return None
    raise GalleryUnavailable(f"A copy of a log must stay; others keep removing {path}. Nothing was written.")


def remove_copy(path: Path) -> None:
    """Remove this machine's copy of a log; processes that have it open make another one."""
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


class _OfFormerLog(GalleryUnavailable):
    """This machine's copy was of a gallery that was removed and begun again; it is removed."""


class _Damaged(CorruptArtifact):
    """The segments in the store are damaged; another copy would be, too."""


class ShippedLog(Log):
    """An open log of a gallery in a store on S3; for one thread at a time.

    Args:
        path: of this machine's copy.
        segments: in the store.
        busy_timeout_s: how long to wait for a transaction of another process, seconds.
        hold_s: how long to wait for a process that holds the log, seconds.
    """

    def __init__(
        self, path: Path, segments: Segments, *, busy_timeout_s: float, hold_s: float = HOLD_S
    ) -> None:
        self._segments, self._hold_s = segments, hold_s
        self._changes: list[Logged] | None = None
        self._holds = ""
        super().__init__(path, create=True, busy_timeout_s=busy_timeout_s)
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'copy'"):
            with self.transaction():
                for statement in _TABLES.split(";\n"):
                    self._rows(statement)
        self.follow()

    # What is written in a transaction

    def write(self, revision: int, entry: Entry, *, embedder: str, image: bytes | None = None) -> None:
        super().write(revision, entry, embedder=embedder, image=image)
        if entry.op == "forget":
            self._rows("UPDATE held_items SET is_forgotten = 1 WHERE id = ?", entry.id)
        self._record(Logged("entry", replace(entry, revision=revision), embedder, image))

    def write_vector(self, id_: str, embedder: str, vector: NDArray[np.float32]) -> None:
        super().write_vector(id_, embedder, vector)
        self._record(Logged("vector", Entry("enrol", id_, vector=vector), embedder))

    def rename_forgotten(self, id_: str, digest: str) -> None:
        super().rename_forgotten(id_, digest)
        self._rows("UPDATE OR REPLACE held_items SET id = ?, is_forgotten = 1 WHERE id = ?", digest, id_)
        self._record(Logged("erased", Entry("forget", digest)))

    def _record(self, change: Logged) -> None:
        if self._changes is not None:
            self._changes.append(change)

    def transact(self, action: Callable[[], T]) -> T:
        """As of any log; where another machine was first, the action is called again.

        Raises:
            GalleryBusy: others were writing for longer than the timeout.
            GalleryUnavailable: S3 cannot be reached.
            WriteCommitted: the segment is written, but this machine's copy could not be.
        """
        if self._connection.in_transaction:
            return action()
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                return self._ship(action)
            except storage.WriteConflict:
                pause = random.uniform(0, _PAUSE_S)
            except _Held:
                pause = 4 * _PAUSE_S
            if time.monotonic() > deadline:
                raise GalleryBusy(
                    f"A gallery is written by one transaction at a time; others have been writing "
                    f"{self._segments.uri} for {self._busy_timeout_s:g} s. Try again."
                )
            time.sleep(pause)

    def _ship(self, action: Callable[[], T]) -> T:
        shipped: Segment | None = None
        self._begin_up_to_date()
        try:
            self._changes = []
            result = action()
            changes = compacted(self._changes)
            if changes:
                log, number, _, _ = self._copy
                segment = Segment(
                    log or uuid.uuid4().hex,
                    number + 1,
                    number + 1,
                    self.revision,
                    uuid.uuid4().hex,
                    self._holds,
                    changes,
                )
                with _reaching(
                    self._segments, "Whether this was written is not known: look before you write it again."
                ):
                    etag = self._segments.write_new(segment)
                shipped = segment
                self._take(segment, name_of(segment.first, segment.last), etag)
            with self._reading_errors():
                self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if shipped is not None:
                raise WriteCommitted(
                    f"A write to gallery {self._segments.gallery} is durable as revision {shipped.revision}, "
                    f"but this process failed after that ({type(error).__name__}: {error}). Do not write it "
                    "again; it is read from the store.",
                    shipped.revision,
                ) from error
            raise
        finally:
            self._changes = None
        return result

    def _begin_up_to_date(self) -> None:
        """Begin a transaction of a copy that has every segment, and that no other process holds."""
        while True:
            with self._reading_errors():
                self._connection.execute("BEGIN IMMEDIATE")
            try:
                newer = self._newer()
                if newer is None:
                    raise _Damaged(
                        f"The segments of a gallery must reach number {self._copy[1]}; in "
                        f"{self._segments.uri} there is none. Restore the folder from a backup, all its "
                        "files; or, where the index was removed on purpose, open it again."
                    )
                if not newer:
                    self._wait_for_holder()
                    return
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("ROLLBACK")
            self._replay(newer, wait=True)

    def _wait_for_holder(self) -> None:
        hold = self._copy[3]
        if not hold or hold == self._holds:
            return
        number = self._copy[1]
        with _reaching(self._segments):
            ages = [
                each.age_s for each in self._segments.list_from(number) if each.first <= number <= each.last
            ]
        if min(ages, default=0.0) < self._hold_s:
            raise _Held

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else writes to the log during the block, or for a minute; raises as `transact`."""
        hold = uuid.uuid4().hex
        self.transact(lambda: self._record(Logged("hold", Entry("forget", hold))))
        self._holds = hold
        try:
            yield
        finally:
            try:
                self.transact(lambda: self._record(Logged("release", Entry("forget", hold))))
            except DmlError as error:  # what the block did is done; others wait until the hold is old
                logger.warning("gallery %s stays held for a minute: %s", self._segments.gallery, error)
            self._holds = ""

    # What other machines have written

    @property
    def data_version(self) -> tuple[int, ...]:
        return (*super().data_version, self._copy[1])

    def follow(self) -> None:
        """Take what other machines have written, unless another process of this machine is doing it.

        Raises:
            CorruptArtifact: a segment is missing, or not as it was written.
            GalleryUnavailable: S3 cannot be reached.
        """
        newer = self._newer()
        if newer is None:  # the gallery was removed
            remove_copy(self.path)
        elif newer:
            self._replay(newer, wait=False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        return self._copy[1] == 0

    @property
    def _copy(self) -> tuple[str, int, str, str]:
        """What this machine has: the log, its last segment with its ETag, and who holds it."""
        ((log, number, etag, hold),) = self._rows("SELECT log, segment, etag, hold FROM copy")
        return log, number, etag, hold

    def _newer(self) -> list[Listed] | None:
        """The segments that this machine does not have, in order; None: there is none at all."""
        log, number, etag, _ = self._copy
        with self._checking():
            listed = self._segments.list_from(number)
            if not number:
                return cover(listed, 0, self._segments.uri)
            last = [each for each in listed if each.first <= number <= each.last]
            if not last:
                if not listed and not self._segments.any():
                    return None
                raise CorruptArtifact(
                    f"The segments of a gallery must reach number {number}, which this machine has read; "
                    f"in {self._segments.uri} they do not. Restore the folder from a backup, all its files; "
                    f"or give up what is missing: remove {self.path.parent} on every machine."
                )
            # Rewritten without what was forgotten, or of another log?
            if etag not in {each.etag for each in last}:
                read = self._segments.read(last[0])
                if read is not None and read[0].log != log:
                    remove_copy(self.path)
                    raise _OfFormerLog(
                        f"Gallery {self._segments.gallery} must stay; it was removed and begun again by "
                        "another process. Try again."
                    )
                with suppress(GalleryBusy), self._without_waiting():
                    self._rows("UPDATE copy SET etag = ? WHERE segment = ?", last[0].etag, number)
            return cover(listed, number, self._segments.uri)

    def _replay(self, newer: Sequence[Listed], *, wait: bool) -> None:
        """Apply segments to this machine's copy, some at a time."""
        forgets = False
        for start in range(0, len(newer), _SEGMENTS_AT_ONCE):
            some = newer[start : start + _SEGMENTS_AT_ONCE]
            with self._checking():
                segments = self._segments.read_all(some)
            if segments is None:
                return  # merged meanwhile: the next look finds them
            try:
                with nullcontext() if wait else self._without_waiting(), self.transaction():
                    for listed, segment in zip(some, segments, strict=True):
                        log, number, _, _ = self._copy
                        if log not in ("", segment.log):
                            raise _Damaged(
                                f"The segments of a gallery must be of one log; {listed.name} in "
                                f"{self._segments.uri} is of another. Restore the folder from a backup, "
                                "all its files."
                            )
                        if segment.last > number >= segment.first - 1:
                            self._apply(segment)
                            self._take(segment, listed.name, listed.etag)
            except GalleryBusy:
                if wait:
                    raise
                return  # the other writer takes them first
            forgets |= any(c.entry.op == "forget" for segment in segments for c in segment.changes)
        if forgets:
            with suppress(DmlError), self._without_waiting():
                self._rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def _apply(self, segment: Segment) -> None:
        digests = {c.entry.id: c.kind for c in segment.changes if c.entry.id.startswith(ERASED)}
        for id_ in self._ids() if digests else ():
            kind = digests.get(erased_id(id_))
            if kind == "entry":  # the segment was rewritten before this machine read it
                self.write(segment.revision, Entry("forget", id_), embedder="")
            if kind is not None:
                self.rename_forgotten(id_, erased_id(id_))
        for kind, entry, embedder, image in segment.changes:
            if kind == "entry":
                self.write(entry.revision, entry, embedder=embedder, image=image)
            elif kind == "vector" and entry.vector is not None:
                self.write_vector(entry.id, embedder, entry.vector)
        self.set_revision(segment.revision)

    def _ids(self) -> list[str]:
        return [id_ for (id_,) in self._rows("SELECT id FROM entries")]

    def _take(self, segment: Segment, name: str, etag: str) -> None:
        """Note that this machine's copy has a segment, inside a transaction."""
        hold = self._copy[3]
        for change in segment.changes:
            if change.kind == "hold":
                hold = change.entry.id
            elif change.kind == "release" or segment.hold != hold:
                hold = ""
            if change.kind in ("entry", "vector"):
                self._rows("INSERT OR IGNORE INTO held_items VALUES (?, ?, 0)", change.entry.id, name)
        self._rows(
            "UPDATE copy SET log = ?, segment = ?, etag = ?, hold = ?", segment.log, segment.last, etag, hold
        )

    # What is erased

    def truncate(self) -> bool:
        """As of any log; and of what was forgotten, nothing is left in the segments either.

        Raises:
            GalleryUnavailable: S3 cannot be reached; the next call goes on.
        """
        done = super().truncate()
        wanted: dict[str, set[str]] = {}
        for id_, name in self._rows("SELECT id, segment FROM held_items WHERE is_forgotten"):
            wanted.setdefault(name, set()).add(id_)
        for name, ids in wanted.items():
            with self._checking():
                etag = self._erase_from(name, ids)
            with self.transaction():
                for id_ in ids:
                    self._rows("DELETE FROM held_items WHERE id = ? AND segment = ?", id_, name)
                number = self._copy[1]
                if etag is not None and name.startswith(f"{number:012d}-"):
                    self._rows("UPDATE copy SET etag = ?", etag)
        return done

    def segments_by_id(self) -> dict[str, list[str]]:
        self.follow()
        by_id: dict[str, list[str]] = {}
        for id_, name in self._rows("SELECT id, segment FROM held_items ORDER BY segment"):
            by_id.setdefault(id_, []).append(self._segments.uri_of(name))
        return by_id

    def _erase_from(self, name: str, ids: set[str]) -> str | None:
        """Rewrite a segment without items that were forgotten; its new ETag; None: it stays as it is."""
        for listed in self._segments.list_from(int(name[:12])):
            if listed.name != name:
                continue
            for _ in range(_TRIES):
                read = self._segments.read(listed)
                if read is None:
                    return None
                segment, stored = read
                changes = tuple(_without(segment.changes, ids))
                if changes == segment.changes:
                    return None
                with suppress(storage.WriteConflict):
                    return self._segments.rewrite(replace(segment, changes=changes), stored)
            raise GalleryUnavailable(f"Only one process must erase from {name} at a time. Try again.")
        return None

    @contextmanager
    def _checking(self) -> Iterator[None]:
        """Errors of the store, told from those of this machine's copy."""
        try:
            with _reaching(self._segments):
                yield
        except CorruptArtifact as error:
            raise _Damaged(str(error)) from error

    @contextmanager
    def _without_waiting(self) -> Iterator[None]:
        """Other writers are not waited for: they may wait for what this thread has locked."""
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            yield
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * self._busy_timeout_s)}")


def _without(changes: Sequence[Logged], ids: set[str]) -> Iterator[Logged]:
    """The changes without items that were forgotten; of a forgetting itself, the id is left or its digest."""
    for change in changes:
        id_ = change.entry.id
        digest = erased_id(id_)
        if change.kind not in ("entry", "vector") or not ids & {id_, digest}:
            yield change
        elif change.kind == "entry" and change.entry.op == "forget":
            entry = replace(change.entry, id=digest) if digest in ids else change.entry
            yield change._replace(entry=entry)


@contextmanager
def _reaching(segments: Segments, consequence: str = "Nothing was written.") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GalleryUnavailable(
            f"The log of gallery {segments.gallery} must be reachable in {segments.uri}; it is not: {error}. "
            f"{consequence}"
        ) from error

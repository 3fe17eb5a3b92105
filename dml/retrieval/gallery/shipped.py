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
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from dml.retrieval.gallery.local_copy import (
    DamagedSegments,
    LocalCopy,
    OfFormerLog,
    SegmentsOfOtherFormat,
    reaching,
    remove_copy,
)
from dml.retrieval.gallery.log import Entry, Log, T
from dml.retrieval.gallery.merging import merge_segments
from dml.retrieval.gallery.segment import Logged, Segment, compacted
from dml.retrieval.gallery.segment_erasure import erase_items
from dml.retrieval.gallery.segments import Segments, name_of, numbers_of

logger = logging.getLogger(__name__)

HOLD_S = 60.0
"""How long a process that holds the log is waited for, by the clock of the store: it may have been killed."""
_PAUSE_S = 0.05
_TRIES = 5


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
    with reaching():
        is_there = segments.any()
    if not is_there and not create and not path.exists():
        return None
    for _ in range(_TRIES):
        try:
            log = ShippedLog(path, segments, busy_timeout_s=busy_timeout_s, hold_s=hold_s)
        except OfFormerLog:
            continue
        except (CorruptArtifact, IncompatibleArtifact) as error:
            if isinstance(error, DamagedSegments | SegmentsOfOtherFormat):
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


class ShippedLog(LocalCopy):
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
        self._hold_s = hold_s
        self._changes: list[Logged] | None = None
        self._holds = ""
        super().__init__(path, segments, busy_timeout_s=busy_timeout_s)

    def write(self, revision: int, entry: Entry, *, embedder: str, image: bytes | None = None) -> None:
        super().write(revision, entry, embedder=embedder, image=image)
        self._record(Logged("entry", replace(entry, revision=revision), embedder, image))

    def write_vector(self, id_: str, embedder: str, vector: NDArray[np.float32]) -> None:
        super().write_vector(id_, embedder, vector)
        self._record(Logged("vector", Entry("enrol", id_, vector=vector), embedder))

    def rename_forgotten(self, id_: str, digest: str) -> int | None:
        revision = super().rename_forgotten(id_, digest)
        if revision is not None:
            self._record(Logged("erased", Entry("forget", digest, revision=revision)))
        return revision

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
                log, number, _, _ = self.reached
                segment = Segment(
                    log or uuid.uuid4().hex,
                    number + 1,
                    number + 1,
                    self.revision,
                    (uuid.uuid4().hex,),
                    self._holds,
                    changes,
                )
                with reaching("Whether this was written is not known: look before you write it again."):
                    etag = self._segments.write_new(segment)
                shipped = segment
                self._take(segment, etag)
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
                newer = self.newer()
                if newer is None:
                    raise DamagedSegments(
                        f"The segments of a gallery must reach number {self.reached.number}; in "
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
            self.replay(newer, wait=True)

    def _wait_for_holder(self) -> None:
        hold = self.reached.hold
        if not hold or hold == self._holds:
            return
        number = self.reached.number
        with reaching():
            last = self._segments.list_from(number, most=1)
        if not last or last[0].age_s < self._hold_s:
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

    def truncate(self) -> bool:
        """As of any log; and of what was forgotten, nothing is left in the segments either.

        Raises:
            GalleryUnavailable: S3 cannot be reached; the next call goes on.
        """
        done = super().truncate()
        rows = self._rows("SELECT id, segment, forgotten FROM segment_items WHERE forgotten")
        held: dict[str, dict[str, int]] = {}
        for id_, name, revision in rows:
            held.setdefault(name, {})[id_] = revision
        if held:
            with self._checking():
                etags = erase_items(self._segments, held)
            with self.transaction():
                for row in rows:
                    self._rows(
                        "DELETE FROM segment_items WHERE id = ? AND segment = ? AND forgotten = ?", *row
                    )
                number = self.reached.number
                if (etag := etags.get(name_of(number, number))) is not None:
                    self._rows("UPDATE reached SET etag = ?", etag)
        return done

    def segments_by_id(self) -> dict[str, list[str]]:
        self.follow()
        rows = self._rows("SELECT id, segment FROM segment_items ORDER BY segment")
        with self._checking():
            merged = self._segments.list_merged(0) if rows else []
        by_id: dict[str, dict[str, None]] = {}
        for id_, name in rows:
            first, last = numbers_of(name)
            following = bisect_left(merged, last, key=lambda each: each.last)
            names = by_id.setdefault(id_, {})
            names[self._segments.uri_of(name)] = None
            if following < len(merged) and merged[following].first <= first:
                names[self._segments.uri_of(merged[following].name)] = None
        return {id_: list(uris) for id_, uris in by_id.items()}

    def merge(self) -> None:
        """Merge the segments of many transactions that are an hour old, and empty what was merged before.

        Raises:
            GalleryUnavailable: S3 cannot be reached; the next call goes on.
        """
        try:
            with self._checking():
                merge_segments(self._segments)
        except DamagedSegments as error:  # this copy has what they held, and `dml verify` names them
            logger.warning("segments of gallery %s are not merged: %s", self._segments.gallery, error)

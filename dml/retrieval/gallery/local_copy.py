"""This machine's copy of the log of a gallery on S3: segments of the store in, an SQLite log out.

The copy is in the cache, all processes of the machine share it, and it can be made again. It also knows which
segments hold each item, so that a forgetting finds them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from dml.errors import (
    CorruptArtifact,
    DmlError,
    GalleryBusy,
    GalleryUnavailable,
    IncompatibleArtifact,
    StorageUnavailable,
)
from dml.retrieval.gallery.log import ERASED, Entry, Log, erased_id
from dml.retrieval.gallery.segment import RESTORE, Logged, Segment, hold_after
from dml.retrieval.gallery.segments import Listed, Segments, cover, name_of

_SEGMENTS_AT_ONCE, _BYTES_AT_ONCE = 64, 1 << 27
_TRIES = 5
_TABLES = """
CREATE TABLE IF NOT EXISTS reached (
    log TEXT NOT NULL, number INTEGER NOT NULL, etag TEXT NOT NULL, hold TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS segment_items (
    id TEXT NOT NULL, segment TEXT NOT NULL, forgotten INTEGER NOT NULL, PRIMARY KEY (id, segment)
);
INSERT INTO reached SELECT '', 0, '', '' WHERE NOT EXISTS (SELECT 1 FROM reached)"""


class OfFormerLog(GalleryUnavailable):
    """This machine's copy was of a gallery that was removed and begun again; it is removed."""


class DamagedSegments(CorruptArtifact):
    """The segments in the store are damaged; another copy would be, too."""


class SegmentsOfOtherFormat(IncompatibleArtifact):
    """Another version of this program wrote the segments in the store."""


class Reached(NamedTuple):
    """Up to where a copy has the log; at first, nowhere."""

    log: str
    number: int
    """Of the last transaction."""
    etag: str
    """Of its segment."""
    hold: str
    """What a process holds the log by; "" where none does."""


def remove_copy(path: Path) -> None:
    """Remove this machine's copy of a log; processes that have it open make another one."""
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


@contextmanager
def reaching(consequence: str = "Nothing was written.") -> Iterator[None]:
    """Errors of a store that cannot be reached, as those of a gallery."""
    try:
        yield
    except StorageUnavailable as error:
        raise GalleryUnavailable(f"{error} {consequence}") from error


class LocalCopy(Log):
    """An open copy of a log; for one thread at a time.

    Args:
        path: of its file.
        segments: in the store.
        busy_timeout_s: how long to wait for a transaction of another process, seconds.
    """

    def __init__(self, path: Path, segments: Segments, *, busy_timeout_s: float) -> None:
        self._segments = segments
        super().__init__(path, create=True, busy_timeout_s=busy_timeout_s)
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'segment_items'"):
            with self.transaction():
                for statement in _TABLES.split(";\n"):
                    self._rows(statement)
        try:
            self.follow()
        except BaseException:
            self.close()
            raise

    @property
    def data_version(self) -> tuple[int, ...]:
        return (*super().data_version, self.reached.number)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        return self.reached.number == 0

    @property
    def reached(self) -> Reached:
        """Up to where it has the log."""
        ((log, number, etag, hold),) = self._rows("SELECT log, number, etag, hold FROM reached")
        return Reached(log, number, etag, hold)

    def write(self, revision: int, entry: Entry, *, embedder: str, image: bytes | None = None) -> None:
        super().write(revision, entry, embedder=embedder, image=image)
        if entry.op == "forget":
            self._rows("UPDATE segment_items SET forgotten = ? WHERE id = ?", revision, entry.id)

    def rename_forgotten(self, id_: str, digest: str) -> int | None:
        revision = super().rename_forgotten(id_, digest)
        if revision is not None:
            self._rows(
                "UPDATE OR REPLACE segment_items SET id = ?, forgotten = max(forgotten, ?) WHERE id = ?",
                digest,
                revision,
                id_,
            )
        return revision

    def follow(self) -> None:
        """Take what other machines have written, unless another process of this machine is doing it.

        Raises:
            CorruptArtifact: a segment is missing, or not as it was written.
            GalleryUnavailable: S3 cannot be reached.
        """
        tries = 0
        while tries < _TRIES:
            number, newer = self.reached.number, self.newer()
            if newer is None:  # the gallery was removed
                remove_copy(self.path)
            if not newer or self.replay(newer, wait=False):
                return
            tries = tries + 1 if number == self.reached.number else 0
        raise GalleryUnavailable(
            f"The segments of a gallery must stay while they are read; in {self._segments.uri} some were "
            f"merged, {_TRIES} times. Try again."
        )

    def newer(self) -> list[Listed] | None:
        """The segments that it does not have, in order; None: the store has none. Raises as `follow`."""
        log, number, etag, _ = self.reached
        with self._checking():
            listed = self._segments.list_after(number)
            if not number:
                return cover(listed, 0, self._segments.uri)
            last = next((each for each in listed if each.first == each.last == number), None)
            if last is None:
                if not listed and not self._segments.any():
                    return None
                raise CorruptArtifact(
                    f"The segments of a gallery must reach number {number}, which this machine has read; "
                    f"in {self._segments.uri} they do not. Restore the folder from a backup, all its files; "
                    f"or give up what is missing: remove {self.path.parent} on every machine."
                )
            if etag != last.etag:  # rewritten without what was forgotten, or merged; or of another log?
                if self._segments.read_log(last) not in (None, log):
                    remove_copy(self.path)
                    raise OfFormerLog(
                        f"Gallery {self._segments.gallery} must stay; it was removed and begun again by "
                        "another process. Try again."
                    )
                with suppress(GalleryBusy), self._without_waiting():
                    self._rows("UPDATE reached SET etag = ? WHERE number = ?", last.etag, number)
            return cover(listed, number, self._segments.uri)

    def replay(self, newer: Sequence[Listed], *, wait: bool) -> bool:
        """Apply segments, some at a time; False: some were merged meanwhile, look again.

        Args:
            newer: in order.
            wait: for other processes of this machine; else what they are about to apply is left to them.
        """
        forgets = False
        for some in _some_at_a_time(newer):
            with self._checking():
                segments = self._segments.read_all(some)
            if segments is None:
                return False
            try:
                with nullcontext() if wait else self._without_waiting(), self.transaction():
                    for listed, segment in zip(some, segments, strict=True):
                        log, number, _, _ = self.reached
                        if log not in ("", segment.log):
                            raise DamagedSegments(
                                f"The segments of a gallery must be of one log; {listed.name} in "
                                f"{self._segments.uri} is of another. {RESTORE}"
                            )
                        if segment.last > number >= segment.first - 1:
                            self._apply(segment)
                            self._take(segment, listed.etag)
            except GalleryBusy:
                if wait:
                    raise
                return True  # the other writer takes them first
            forgets |= any(c.entry.op == "forget" for segment in segments for c in segment.changes)
        if forgets:
            with suppress(DmlError), self._without_waiting():
                self._rows("PRAGMA wal_checkpoint(TRUNCATE)")
        return True

    def _apply(self, segment: Segment) -> None:
        digests: dict[str, list[Logged]] = {}
        for change in segment.changes:
            if change.entry.id.startswith(ERASED):
                digests.setdefault(change.entry.id, []).append(change)
        for id_, revision in self._rows("SELECT id, revision FROM entries") if digests else ():
            for change in digests.get(erased_id(id_), ()):
                if revision > change.entry.revision:  # it was enrolled again
                    continue
                if change.kind == "entry":  # the segment was rewritten before this machine read it
                    self.write(change.entry.revision, Entry("forget", id_), embedder="")
                self.rename_forgotten(id_, change.entry.id)
        for kind, entry, embedder, image in segment.changes:
            if kind == "entry":
                self.write(entry.revision, entry, embedder=embedder, image=image)
            elif kind == "vector" and entry.vector is not None:
                self.write_vector(entry.id, embedder, entry.vector)
        self.set_revision(segment.revision)

    def _take(self, segment: Segment, etag: str) -> None:
        """Note that this copy has a segment, inside a transaction."""
        name = name_of(segment.first, segment.last)
        is_single = segment.first == segment.last
        for kind, entry, _, _ in segment.changes:
            # Segments that were merged, but are not empty yet, may hold what was forgotten in one of them.
            forgotten = entry.revision if entry.op == "forget" and not is_single else 0
            if kind in ("entry", "vector"):
                self._rows("INSERT OR IGNORE INTO segment_items VALUES (?, ?, ?)", entry.id, name, forgotten)
        hold = hold_after(segment, self.reached.hold) if is_single else segment.hold
        self._rows(
            "UPDATE reached SET log = ?, number = ?, etag = ?, hold = ?",
            segment.log,
            segment.last,
            etag,
            hold,
        )

    @contextmanager
    def _checking(self) -> Iterator[None]:
        """Errors of the store, told from those of this machine's copy."""
        try:
            with reaching():
                yield
        except CorruptArtifact as error:
            raise DamagedSegments(str(error)) from error
        except IncompatibleArtifact as error:
            raise SegmentsOfOtherFormat(str(error)) from error

    @contextmanager
    def _without_waiting(self) -> Iterator[None]:
        """Other writers are not waited for: they may wait for what this thread has locked."""
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            yield
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * self._busy_timeout_s)}")


def _some_at_a_time(listed: Sequence[Listed]) -> Iterator[list[Listed]]:
    """Segments that are read at once: not too many, and not too much in memory."""
    some: list[Listed] = []
    for each in listed:
        size_bytes = sum(other.size_bytes for other in some) + each.size_bytes
        if some and (len(some) == _SEGMENTS_AT_ONCE or size_bytes > _BYTES_AT_ONCE):
            yield some
            some = []
        some.append(each)
    if some:
        yield some

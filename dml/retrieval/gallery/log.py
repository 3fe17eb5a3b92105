"""The log of a gallery: what was enrolled, changed and forgotten since its first index, in one SQLite file.

It holds the last change of each item, with the revision of its transaction. So what happened since a
revision is a query, and nothing is left of what came before a change or a forgetting. A transaction is on
the disk before it is acknowledged (write-ahead log, `synchronous=FULL`), and what is deleted is overwritten
(`secure_delete`).
"""

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dml.data.forgotten import digest_of_id
from dml.errors import CorruptArtifact, GalleryBusy, GalleryUnavailable, IncompatibleArtifact

logger = logging.getLogger(__name__)

FORMAT = 2
BUSY_TIMEOUT_S = 10.0
_TRUNCATE_TRIES, _TRUNCATE_PAUSE_S = 20, 0.05
_SCHEMA = """
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    revision INTEGER NOT NULL,
    op TEXT NOT NULL,
    id TEXT NOT NULL UNIQUE,
    label TEXT,
    attributes TEXT NOT NULL,
    content TEXT NOT NULL,
    who TEXT NOT NULL,
    time TEXT NOT NULL
);
CREATE INDEX entries_by_revision ON entries (revision);
CREATE TABLE vectors (
    id TEXT NOT NULL, embedder TEXT NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (id, embedder)
);
CREATE TABLE images (id TEXT PRIMARY KEY, image BLOB NOT NULL);
CREATE TABLE gallery (name TEXT NOT NULL, revision INTEGER NOT NULL);
"""

ERASED = "\0sha256:"
"""Before the digest of an id that was forgotten and that no index or dataset holds any more; no id has it."""
Operation = Literal["enrol", "update", "forget"]
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """The last change of an item."""

    op: Operation
    """enrol: it is in the log, with its vector; update: it is in the index, with other columns."""
    id: str
    label: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    content: str = ""
    """SHA-256 of its image, or of its vector where there is none."""
    who: str = ""
    time: str = ""
    """ISO 8601, UTC."""
    vector: NDArray[np.float32] | None = None
    """(D,) by the embedder that was asked for; None: it has none, or none by that."""
    revision: int = 0


def timestamp() -> str:
    """Now, as an entry has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def erased_id(id_: str) -> str:
    """What the log holds of an id that nothing else holds."""
    return ERASED + digest_of_id(id_)


class Log:
    """An open log; for one thread at a time.

    Args:
        path: of its file, in a folder with the gallery's name.
        create: make it where it is missing.
        busy_timeout_s: how long to wait for a transaction of another process.

    Raises:
        CorruptArtifact: the file is none that SQLite can read, or the log of another gallery.
        IncompatibleArtifact: another version of this program made it.
    """

    def __init__(self, path: Path, *, create: bool = False, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path, self._busy_timeout_s = path, busy_timeout_s
        with self._reading_errors():
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._is_immutable = False
            self._connection = self._connect("mode=rwc" if create else "mode=rw")
            try:
                self._prepare(create=create)
            except sqlite3.OperationalError:
                if create or os.access(path.parent, os.W_OK, effective_ids=True) or _has_tail(path):
                    raise
                self._connection.close()  # nobody can write to this folder, as to a mounted copy
                self._connection, self._is_immutable = self._connect("mode=ro&immutable=1"), True
                self._prepare(create=False)
            self._file = _file_of(path)
        if self.is_ready:
            self._require_own()

    def _connect(self, options: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{options}",
            uri=True,
            timeout=self._busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )

    def _prepare(self, *, create: bool) -> None:
        execute = self._connection.execute
        (made,) = execute("PRAGMA user_version").fetchone()
        if made == 0 and create:
            execute("PRAGMA journal_mode=WAL")
            with self.transaction():
                if execute("PRAGMA user_version").fetchone() == (0,):
                    for statement in _SCHEMA.split(";\n"):
                        execute(statement)
                    execute("INSERT INTO gallery VALUES (?, 0)", (self.path.absolute().parent.name,))
                    execute(f"PRAGMA user_version={FORMAT}")
            (made,) = execute("PRAGMA user_version").fetchone()
        if made not in (0, FORMAT):
            raise IncompatibleArtifact(
                f"The log of a gallery must have format {FORMAT} for this program; {self.path} has {made}. "
                "Use the program that made it."
            )
        execute("PRAGMA synchronous=FULL")
        execute("PRAGMA secure_delete=ON")
        self.is_ready = made == FORMAT
        """Whether it can be read; not for the moment in which another process makes it."""

    def _require_own(self) -> None:
        ((name,),) = self._rows("SELECT name FROM gallery")
        if name != self.path.absolute().parent.name:
            raise CorruptArtifact(
                f"The log of a gallery must be its own; {self.path} is of gallery {name}. Put the gallery's "
                "own there, from a backup."
            )

    @property
    def is_replaced(self) -> bool:
        """Whether another file is at its path now, or none; or one that should not change was written to."""
        return _file_of(self.path) != self._file or (self._is_immutable and _has_tail(self.path))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction that writes; it is undone where the block raises.

        Raises:
            GalleryBusy: another process was writing for longer than the timeout.
        """
        with self._reading_errors():
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with self._reading_errors():
                self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def transact(self, action: Callable[[], T]) -> T:
        """Call what writes to the log in a transaction: in the one that is open, else in one of its own.

        Args:
            action: undone where it raises.

        Raises:
            GalleryBusy: another process was writing for longer than the timeout.
        """
        if self._connection.in_transaction:
            return action()
        with self.transaction():
            return action()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else writes to the log during the block; raises as `transact`."""
        with self.transaction():
            yield

    def follow(self) -> None:
        """Take what other machines have written; of a store on a disk there is none."""

    def check(self) -> None:
        """Read all of it.

        Raises:
            CorruptArtifact: it is not as SQLite wrote it.
        """
        problems = [problem for (problem,) in self._rows("PRAGMA integrity_check") if problem != "ok"]
        if problems:
            raise CorruptArtifact(
                f"The log of a gallery must be as SQLite wrote it; {self.path} is not: {problems[0]}. "
                "Restore it from a backup."
            )

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Whatever is read in the block is of one revision."""
        with self._reading_errors():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    @property
    def data_version(self) -> tuple[int, ...]:
        """Numbers that change when another connection has committed."""
        with self._reading_errors():
            return (int(self._connection.execute("PRAGMA data_version").fetchone()[0]),)

    @property
    def revision(self) -> int:
        """Of the last transaction; 0 before the first."""
        with self._reading_errors():
            return int(self._connection.execute("SELECT revision FROM gallery").fetchone()[0])

    def entries_after(self, revision: int, embedder: str) -> list[Entry]:
        """The last changes of all items that changed since, in order, with vectors by an embedder."""
        return list(self._entries("WHERE revision > ?", revision, embedder=embedder))

    def without_vector(self, revision: int, embedder: str) -> list[str]:
        """The ids of what was enrolled since a revision and has no vector by an embedder, in order."""
        with self._reading_errors():
            rows = self._connection.execute(
                "SELECT id FROM entries WHERE op = 'enrol' AND revision > ? AND NOT EXISTS (SELECT 1 FROM "
                "vectors WHERE vectors.id = entries.id AND embedder = ?) ORDER BY seq",
                (revision, embedder),
            ).fetchall()
        return [id_ for (id_,) in rows]

    def entry(self, id_: str) -> Entry | None:
        """The last change of an item; None: nobody touched it."""
        return next(self._entries("WHERE entries.id = ?", id_, embedder=""), None)

    def _entries(self, where: str, *values: Any, embedder: str) -> Iterator[Entry]:
        with self._reading_errors():
            rows = self._connection.execute(
                "SELECT op, entries.id, label, attributes, content, who, time, vector, revision FROM entries "
                f"LEFT JOIN vectors ON vectors.id = entries.id AND embedder = ? {where} ORDER BY seq",
                (embedder, *values),
            ).fetchall()
        for op, id_, label, attributes, content, who, when, vector, revision in rows:
            unpacked = None if vector is None else np.frombuffer(vector, "<f4")
            yield Entry(op, id_, label, json.loads(attributes), content, who, when, unpacked, revision)

    def image(self, id_: str) -> bytes | None:
        """The image of an enrolled item; None: it was enrolled as a vector, or is not in the log."""
        with self._reading_errors():
            row = self._connection.execute("SELECT image FROM images WHERE id = ?", (id_,)).fetchone()
        return None if row is None else bytes(row[0])

    def ids_with_image(self, ids: Sequence[str]) -> set[str]:
        """Those of these items that `image` has."""
        with self._reading_errors():
            rows = self._connection.execute(
                "SELECT id FROM images WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
            ).fetchall()
        return {id_ for (id_,) in rows}

    def write(self, revision: int, entry: Entry, *, embedder: str, image: bytes | None = None) -> None:
        """Make this the last change of its item, inside a transaction.

        An entry without a vector leaves the item's vectors and image; of one that is forgotten, none is left.
        """
        execute = self._connection.execute
        with self._reading_errors():
            execute("DELETE FROM entries WHERE id = ?", (entry.id,))
            if entry.op == "forget" or entry.vector is not None:
                execute("DELETE FROM vectors WHERE id = ?", (entry.id,))
                execute("DELETE FROM images WHERE id = ?", (entry.id,))
            execute(
                "INSERT INTO entries (revision, op, id, label, attributes, content, who, time) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    revision,
                    entry.op,
                    entry.id,
                    entry.label,
                    json.dumps(dict(entry.attributes), allow_nan=False),
                    entry.content,
                    entry.who,
                    entry.time,
                ),
            )
            if entry.vector is not None:
                self._insert_vector(entry.id, embedder, entry.vector)
            if image is not None:
                execute("INSERT INTO images VALUES (?, ?)", (entry.id, image))

    def write_vector(self, id_: str, embedder: str, vector: NDArray[np.float32]) -> None:
        """Add an item's vector by an embedder, inside a transaction."""
        self._insert_vector(id_, embedder, vector)

    def _insert_vector(self, id_: str, embedder: str, vector: NDArray[np.float32]) -> None:
        self._rows(
            "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", id_, embedder, vector.astype("<f4").tobytes()
        )

    def forgotten(self) -> list[str]:
        """The ids of forgotten items, in order; digests of those that nothing holds any more."""
        with self._reading_errors():
            rows = self._connection.execute("SELECT id FROM entries WHERE op = 'forget' ORDER BY seq")
            return [id_ for (id_,) in rows.fetchall()]

    def segments_by_id(self) -> dict[str, list[str]]:
        """The URIs of the segments that hold each item; of a store on a disk there is none."""
        return {}

    def rename_forgotten(self, id_: str, digest: str) -> int | None:
        """Replace the id of a forgotten item by its digest, inside a transaction.

        Returns:
            The revision that it was forgotten with; None: it is not forgotten, and stays.
        """
        for (revision,) in self._rows("SELECT revision FROM entries WHERE op = 'forget' AND id = ?", id_):
            self._rows("UPDATE OR REPLACE entries SET id = ? WHERE id = ?", digest, id_)
            return int(revision)
        return None

    def set_revision(self, revision: int) -> None:
        """Number the open transaction."""
        self._rows("UPDATE gallery SET revision = ?", revision)

    def merge(self) -> None:
        """Merge what many transactions wrote; of a store on a disk they are in one file."""

    def truncate(self) -> bool:
        """Move all transactions into the main file and empty the write-ahead log, which may hold what was
        deleted; False: readers in other processes kept it."""
        for _ in range(_TRUNCATE_TRIES):
            with self._reading_errors():
                (busy, *_) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return True
            time.sleep(_TRUNCATE_PAUSE_S)
        logger.warning(
            "Readers in other processes keep the write-ahead log %s-wal, which may hold what was forgotten. "
            "It is emptied by the next `dml reindex`, or `dml forget`, once they have ended.",
            self.path,
        )
        return False

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._reading_errors():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _reading_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unavailable(error) from error
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise GalleryBusy(
                    f"A gallery is written by one transaction at a time; another process has been writing "
                    f"{self.path} for {self._busy_timeout_s:g} s. Try again."
                ) from error
            raise self._unavailable(error) from error
        except sqlite3.DatabaseError as error:
            raise CorruptArtifact(
                f"The log of a gallery must be as SQLite wrote it; {self.path} is not: {error}. Restore it "
                "from a backup."
            ) from error

    def _unavailable(self, error: Exception) -> GalleryUnavailable:
        return GalleryUnavailable(
            f"The log of a gallery must be a file that this process can read and write; {self.path} is not: "
            f"{error}. Nothing was written. Check the disk's space and the folder's permissions."
        )


def _file_of(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one that took its place; None: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _has_tail(path: Path) -> bool:
    """Whether a write-ahead log holds transactions that are not in the main file."""
    tail = path.with_name(f"{path.name}-wal")
    return tail.exists() and tail.stat().st_size > 0

"""Group commit: writes of many threads in, transactions of a gallery's log out.

    transaction with the next revision -> commit -> apply in memory -> revisions are equal -> acknowledge

While a transaction is written others wait, and all who waited share the next one.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from dml.errors import DmlError, IncompatibleArtifact, InvalidSetting, WriteCommitted
from dml.retrieval.gallery.current import CurrentState
from dml.retrieval.gallery.entries import MakeEntries
from dml.retrieval.gallery.fold import behind, open_log
from dml.retrieval.gallery.log import Entry, Log
from dml.retrieval.gallery.state import State

MOST_MOVES = 5
"""Newly published versions in a row for which a write is tried again."""


class ModelChanged(IncompatibleArtifact):
    """Another model became current while vectors of the former one were being written."""


@dataclass
class _Request:
    """A write that waits for its transaction."""

    make: MakeEntries
    embedder: str | None
    """Of the vectors; None: there are none."""
    done: "Future[tuple[int, list[str]]]" = field(default_factory=Future)
    ids: list[str] = field(default_factory=list)
    """Of what was written."""


class Writer:
    """Writes to the log of a gallery; can be shared between threads.

    Args:
        current: the state that a transaction is applied to.
        busy_timeout_s: how long a write waits for another process.
        after_commit: called between commit and acknowledgement.
    """

    def __init__(
        self, current: CurrentState, *, busy_timeout_s: float, after_commit: Callable[[], None]
    ) -> None:
        self._current, self._busy_timeout_s, self._after_commit = current, busy_timeout_s, after_commit
        self._writing = threading.Lock()
        self._waiting: list[_Request] = []
        self._queue = threading.Lock()
        self._log: Log | None = None

    def commit(self, make: MakeEntries, embedder: str | None) -> tuple[int, list[str]]:
        """Write in a transaction that all who wait share.

        Args:
            make: makes the entries.
            embedder: fingerprint of what made their vectors; None: they have none.

        Returns:
            The transaction's revision, and the ids of what was written.

        Raises:
            ModelChanged: the index's embedder is another one now; nothing was written.
            WriteCommitted: it is durable, but this process failed after that.
        """
        request = _Request(make, embedder)
        with self._queue:
            self._waiting.append(request)
        with self._writing:
            if not request.done.done():
                with self._queue:
                    requests, self._waiting = self._waiting, []
                try:
                    self._write(requests)
                except BaseException as error:
                    for each in requests:
                        if not each.done.done():
                            each.done.set_exception(error)
        return request.done.result()

    def truncate(self) -> None:
        """Leave nothing of what was deleted in the log's files, where no other process is reading them."""
        with self._writing:
            if self._log is not None:
                self._log.truncate()

    def close(self) -> None:
        """Close the log."""
        with self._writing:
            if self._log is not None:
                self._log.close()
            self._log = None

    def _write(self, requests: list[_Request]) -> None:
        current = self._current
        log = self._opened()
        for _ in range(MOST_MOVES):
            done = log.transact(lambda: self._write_to_published(requests, log))
            if done is not None:
                break
            current.refresh()
        else:
            raise InvalidSetting(f"Gallery {current.name} must stay published for a write. Try again.")
        before, written, revision = done
        failure: BaseException | None = None
        if written:
            try:
                self._after_commit()
                current.apply(before, written, revision, log)
            except BaseException as error:
                failure = error
                current.rebuild()
        for request in requests:
            if request.done.done():
                continue
            if failure is not None:
                request.done.set_exception(
                    WriteCommitted(
                        f"A write to gallery {current.name} is durable as revision {revision}, but this "
                        f"process failed after that ({type(failure).__name__}: {failure}). Do not write it "
                        "again; it is read from the log.",
                        revision,
                    )
                )
            else:
                request.done.set_result((revision, request.ids))

    def _write_to_published(
        self, requests: list[_Request], log: Log
    ) -> tuple[State, list[Entry], int] | None:
        """Write inside a transaction; the state before, the entries and the revision after it.

        Returns:
            None: another version of the index was published; nothing was written.
        """
        current = self._current
        if not current.is_published():
            return None
        if log.revision < current.state.live.revision:
            raise behind(current.name, log.revision, current.state.live.revision)
        current.catch_up(log)
        before = current.state
        return before, *self._write_all(requests, log)

    def _opened(self) -> Log:
        """The log to write to; made with the first write.

        Raises:
            CorruptArtifact: it was removed, or another one took its place.
        """
        current = self._current
        if self._log is not None and self._log.is_replaced:
            self._log.close()
            self._log = None
            current.follow()
        if self._log is None:
            revision = current.state.live.revision
            self._log = open_log(
                current.store,
                current.name,
                path=current.log_path,
                create=revision == 0,
                busy_timeout_s=self._busy_timeout_s,
            )
            if self._log is None:
                raise behind(current.name, None, revision)
        return self._log

    def _write_all(self, requests: list[_Request], log: Log) -> tuple[list[Entry], int]:
        """Write the entries of those requests that are possible; inside a transaction."""
        state = self._current.state
        revision = state.live.revision + 1
        written: dict[str, Entry] = {}
        for request in requests:
            if request.done.done():
                continue
            try:
                if request.embedder not in (None, state.embedder):
                    raise ModelChanged(
                        f"Vectors must be by the model of gallery {self._current.name}; it changed to "
                        f"{state.ref.embeddings.embedder} meanwhile. Embed them again."
                    )
                entries = request.make(state, log)
            except DmlError as error:
                request.done.set_exception(error)
                continue
            for entry, image in entries:
                log.write(revision, entry, embedder=state.embedder, image=image)
                former = written.pop(entry.id, None)
                if entry.op != "forget" and entry.vector is None and former is not None:
                    entry = replace(entry, vector=former.vector)
                written[entry.id] = entry
            request.ids = [entry.id for entry, _ in entries]
        if written:
            log.set_revision(revision)
            return list(written.values()), revision
        return [], state.live.revision

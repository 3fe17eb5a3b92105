"""The current state of a gallery: which version of its index is published, with what its log has by now.

Other processes write to the log and publish versions. A process sees what they wrote when it looks at the log
again, ten times a second at the most (twice, of a store on S3), and another version when it is asked to
`refresh`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from dml import storage
from dml.names import split_version
from dml.refs import IndexRef
from dml.retrieval.gallery.delta import EXACT_ROWS
from dml.retrieval.gallery.fold import log_path, open_log
from dml.retrieval.gallery.log import Entry, Log
from dml.retrieval.gallery.state import State
from dml.retrieval.index import find_index
from dml.retrieval.search import BuiltIndex

_POLLED_EVERY_S = 0.1
_FOLLOWED_EVERY_S = 0.5
"""Of a store on S3, which a list of files is asked for."""


class CurrentState:
    """A state that follows the log and the published version; can be shared between threads.

    Args:
        store: the store's folder or s3:// URI.
        index: NAME, or NAME@VERSION for that version with what happened since.
        open_base: opens a version of the index.
        busy_timeout_s: how long reading waits for another process.
        exact_rows: see `State.built`.
    """

    def __init__(
        self,
        store: str,
        index: str,
        open_base: Callable[[IndexRef], BuiltIndex],
        *,
        busy_timeout_s: float,
        exact_rows: int = EXACT_ROWS,
    ) -> None:
        self.store, self.opened_as = store, index
        self.name, self._pinned = split_version(index, "index")
        self.log_path = log_path(store, self.name)
        self._open_base, self._busy_timeout_s = open_base, busy_timeout_s
        self._built = partial(State.built, exact_rows=exact_rows)
        self._applying = threading.RLock()
        self._reader: Log | None = None
        self._polled_every_s = _FOLLOWED_EVERY_S if storage.is_remote(store) else _POLLED_EVERY_S
        self._seen: tuple[int, ...] = ()
        self._next_poll, self._is_stale = 0.0, False
        self._state = self._built(open_base(find_index(store, index)))
        self._poll(now=True)

    @property
    def is_pinned(self) -> bool:
        """Whether it stays at one version of the index."""
        return self._pinned is not None

    @property
    def state(self) -> State:
        """As this process has seen it last."""
        return self._state

    def latest(self) -> State:
        """With what other processes have committed, as of a tenth of a second ago at the latest.

        Of half a second where the store is on S3.
        """
        self._poll()
        return self._state

    def entry(self, id_: str) -> Entry | None:
        """The log's entry of an item; None: nobody touched it."""
        with self._applying:
            log = self._open_log()
            return None if log is None else log.entry(id_)

    def image(self, id_: str) -> bytes | None:
        """The image of an enrolled item; None: the log has none."""
        with self._applying:
            log = self._open_log()
            return None if log is None else log.image(id_)

    def ids_with_image(self, ids: Sequence[str]) -> set[str]:
        """Those of these items that `image` has."""
        with self._applying:
            log = self._open_log()
            return set() if log is None else log.ids_with_image(ids)

    def is_published(self) -> bool:
        """Whether the version of the state is the published one."""
        folder = storage.named_folder(self.store, "indexes", self.name)
        return storage.current(folder) == self._state.ref.version

    def refresh(self) -> bool:
        """Look at the log, and at which version of the index is published; whether that changed."""
        ref = find_index(self.store, self.opened_as)
        moved = ref.fingerprint != self._state.ref.fingerprint
        if moved:
            state = self._built(self._open_base(ref))
        with self._applying:
            if moved:
                self._take(state)
            self._poll(now=True)
        return moved

    def _poll(self, *, now: bool = False) -> None:
        """Apply what other processes have committed; ten times a second at the most, unless `now`."""
        if not now and not self._is_stale and time.monotonic() < self._next_poll:
            return
        if not self._applying.acquire(blocking=now or self._is_stale):
            return  # another thread is doing it
        try:
            self._next_poll = time.monotonic() + self._polled_every_s
            if self._reader is not None and self._reader.is_replaced:  # restored from a backup, or removed
                self._reader.close()
                self._reader, self._is_stale = None, True
            log = self._open_log()
            if log is None:
                return
            log.follow()
            seen = log.data_version
            if seen != self._seen or self._is_stale:
                self.catch_up(log)
                self._seen, self._is_stale = seen, False
                if self._state.live.without_vector and not self.is_pinned:
                    self._follow_model()  # which changed, as another process has seen
        finally:
            self._applying.release()

    def _follow_model(self) -> None:
        """Take the version that is published, if it is another one."""
        ref = find_index(self.store, self.opened_as)
        if ref.fingerprint != self._state.ref.fingerprint:
            self._take(self._built(self._open_base(ref)))
            self._poll(now=True)
        elif self._state.live.without_vector:  # which have one by now, or not yet
            log = self._open_log()
            if log is not None:
                self._state = _caught_up(self._built(self._state.index, config=self._state.config), log)

    def _take(self, state: State) -> None:
        """Search another version from now on, with what happened since it: no search sees it without."""
        log = self._open_log()
        if log is not None:
            log.follow()  # so that it has the vectors by the version's model, which were written before that
            state = _caught_up(state, log)
        self._state, self._seen = state, ()

    def _open_log(self) -> Log | None:
        """The log as it is read; None: there is none yet."""
        if self._reader is None:
            self._reader = open_log(
                self.store, self.name, path=self.log_path, busy_timeout_s=self._busy_timeout_s
            )
        return self._reader

    def catch_up(self, log: Log) -> None:
        """Apply what the log has that the state has not."""
        with self._applying:
            former = self._state
            state = self._built(former.index, config=former.config) if self._is_stale else former
            self._state = _caught_up(state, log)
            self._is_stale = False

    def apply(self, before: State, written: Sequence[Entry], revision: int, log: Log) -> None:
        """Apply what was committed; where another thread moved on meanwhile, as the log has it."""
        with self._applying:
            if self._state is before:
                self._state = before.after(written, revision)
            else:
                self.catch_up(log)
            if self._state.live.revision < revision:
                raise AssertionError(
                    f"revision {revision} is committed, this process has {self._state.live.revision}"
                )

    def follow(self) -> None:
        """Look at the log now."""
        self._poll(now=True)

    def rebuild(self) -> None:
        """Read everything again from the log, now or, if that fails, when it is next needed."""
        self._is_stale = True
        with suppress(Exception):
            self._poll(now=True)

    def close(self) -> None:
        """Close the log."""
        with self._applying:
            if self._reader is not None:
                self._reader.close()
            self._reader = None


def _caught_up(state: State, log: Log) -> State:
    """The state with all that was committed since."""
    revision = log.revision
    if revision <= state.live.revision:
        return state
    entries = log.entries_after(state.live.revision, state.embedder)
    return state.after(entries, max([revision, *(entry.revision for entry in entries)]))

"""A gallery: a published index that grows and shrinks between its builds.

    transaction with the next revision -> commit -> apply in memory -> revisions are equal -> acknowledge

What is acknowledged is on the disk, and every later search of this process sees it; those of other processes
of this machine see it when they look at the log again, which they do ten times a second.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dml import storage
from dml.data.dataset import read_images
from dml.data.forgotten import digest_of_id
from dml.errors import (
    DmlError,
    IncompatibleArtifact,
    InvalidData,
    InvalidSetting,
    MissingArtifact,
    WriteCommitted,
    did_you_mean,
)
from dml.models.package import Package, load_package
from dml.names import split_version
from dml.refs import AttributeType, DatasetRef, IndexRef, PackageRef, require_package
from dml.retrieval.changes import NO_POSITION, items_columns
from dml.retrieval.gallery.delta import Delta
from dml.retrieval.gallery.fold import log_path
from dml.retrieval.gallery.live import LiveIndex
from dml.retrieval.gallery.log import BUSY_TIMEOUT_S, ERASED, Entry, Log
from dml.retrieval.gallery.quality import Quality, check_duplicates, check_quality
from dml.retrieval.index import find_index
from dml.retrieval.search import Index
from dml.retrieval.shards import open_index
from dml.retrieval.tombstones import Tombstones

_POLLED_EVERY_S = 0.1
_LENGTH_TOLERANCE = 1e-3
_ID_DIGITS = 12
_MOVES = 5
"""Newly published versions in a row for which a write is tried again."""
_PYTHON_TYPES: dict[AttributeType, tuple[type, ...]] = {
    "string": (str,),
    "int64": (int,),
    "double": (float, int),
    "bool": (bool,),
}


@dataclass(frozen=True)
class Enrolment:
    """What an enrolment has done."""

    revision: int
    identity: str
    ids: list[str]
    """Of its items, in the order they were given."""


@dataclass(frozen=True)
class Change:
    """What an update or a forgetting has done."""

    revision: int
    ids: list[str]


@dataclass(frozen=True)
class Item:
    """One live item."""

    id: str
    label: str | None
    attributes: dict[str, Any]
    enrolled: bool
    """False: it is of the index, unchanged since it was built."""
    who: str = ""
    """Who enrolled or changed it."""
    when: str = ""
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class GallerySize:
    """How much happened since the index was built."""

    delta: int
    """Items that were enrolled or changed."""
    tombstones: int
    """Items of the index that were forgotten or changed."""


@dataclass(frozen=True)
class _State:
    """An opened version of the index at a revision; replaced whole."""

    index: Index
    live: LiveIndex

    @property
    def ref(self) -> IndexRef:
        return self.index.ref

    @property
    def embedder(self) -> str:
        return self.ref.embeddings.embedder.fingerprint


@dataclass
class _Request:
    """A write that waits for its transaction."""

    entries: Callable[[_State, Log], Sequence[tuple[Entry, bytes | None]]]
    """The entries to write, each with its image, inside the transaction; none where all is so already."""
    embedder: str | None
    """Of the vectors; None: there are none."""
    done: "Future[tuple[int, list[str]]]" = field(default_factory=Future)
    ids: list[str] = field(default_factory=list)
    """Of what was written."""


class ModelChanged(IncompatibleArtifact):
    """Another model became current while vectors of the former one were being written."""


class Gallery:
    """A published index and its log; can be shared between threads, and opened by many processes.

    Example:
        gallery = Gallery.open("dml-store", "shop")
        gallery.enrol("alice", images=[Path("alice.jpg").read_bytes()], attributes={"region": "east"})
        gallery.forget(identity="alice")
    """

    def __init__(
        self,
        store: str,
        name: str,
        open_base: Callable[[IndexRef], Index] = open_index,
        *,
        readonly: bool = False,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        load: Callable[[str], Package] = load_package,
        after_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._name, self._open_base = store, name, open_base
        self._base_name, self._pinned = split_version(name, "index")
        self._readonly, self._busy_timeout_s, self._after_commit = readonly, busy_timeout_s, after_commit
        self._load = load
        self._writing = threading.Lock()
        self._applying = threading.RLock()
        self._waiting: list[_Request] = []
        self._queue = threading.Lock()
        self._writer: Log | None = None
        self._reader: Log | None = None
        self._seen, self._next_poll, self._is_stale = -1, 0.0, False
        self._packages: dict[str, Package] = {}
        self._state = self._empty(self._open_base(find_index(store, name)))
        self._poll(now=True)

    @classmethod
    def open(
        cls,
        store: str,
        name: str,
        *,
        readonly: bool = False,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        open_base: Callable[[IndexRef], Index] = open_index,
        load: Callable[[str], Package] = load_package,
        after_commit: Callable[[], None] = lambda: None,
    ) -> Self:
        """Open a gallery.

        Args:
            store: the store's folder or s3:// URI.
            name: of its index: NAME, or NAME@VERSION to search that version with what happened since.
            readonly: refuse to write.
            busy_timeout_s: how long a write waits for another process.
            open_base: opens a version of the index.
            load: loads the package at a URI; a service gives the one that it has loaded already.
            after_commit: called between commit and acknowledgement; tests fail there.

        Raises:
            MissingArtifact: no such index.
            CorruptArtifact: index or log are damaged.
        """
        return cls(
            store,
            name,
            open_base,
            readonly=readonly,
            busy_timeout_s=busy_timeout_s,
            load=load,
            after_commit=after_commit,
        )

    # What there is

    @property
    def live(self) -> Index:
        """The index as it is now: of one revision, whatever is written meanwhile.

        Where nothing was enrolled or forgotten it is the published index itself.
        """
        self._poll()
        state = self._state
        live = state.live
        return live if live.tombstones or live.delta.num_rows or live.without_vector else state.index

    @property
    def ref(self) -> IndexRef:
        """The version of the index."""
        return self._state.ref

    @property
    def revision(self) -> int:
        """Of the last transaction that this process has seen."""
        self._poll()
        return self._state.live.revision

    @property
    def size(self) -> GallerySize:
        """How much happened since the index was built."""
        self._poll()
        live = self._state.live
        return GallerySize(live.delta.num_rows, len(live.tombstones))

    def package_of(self, ref: IndexRef) -> Package | None:
        """What embeds images for a version of the index; None: a model that is not in the store did."""
        embedder = ref.embeddings.embedder
        return self._package(embedder) if isinstance(embedder, PackageRef) else None

    def holds(self, id_: str) -> bool:
        """Whether there is a live item with this id."""
        self._poll()
        return self._state.live.item(id_) is not None

    def item(self, id_: str) -> Item:
        """A live item; raises MissingArtifact where there is none with this id."""
        self._poll()
        live = self._state.live
        columns = live.item(id_)
        if columns is None:
            raise self._no_item(id_)
        names = live.ref.embeddings.items.attributes
        attributes = {name: columns.get(name) for name in names}
        enrolled = live.delta.item(id_) is not None
        entry = self._entry(id_) if enrolled else None
        return Item(
            id_,
            columns.get("label"),
            attributes,
            enrolled,
            entry.who if entry else "",
            entry.time if entry else "",
        )

    def picture(self, id_: str) -> bytes:
        """The image file of a live item.

        Raises:
            MissingArtifact: there is no such item, or it was enrolled or imported as a vector.
        """
        self._poll()
        live = self._state.live
        if live.item(id_) is None:
            raise self._no_item(id_)
        with self._applying:
            image = None if self._reader is None else self._reader.image(id_)
        if image is not None:
            return image
        items = live.ref.embeddings.items
        (row,) = live.base.find_rows([id_])
        if row is None or not isinstance(items, DatasetRef):
            raise MissingArtifact(
                f"A picture must be of an item with an image; {id_!r} of {self._base_name} is a vector."
            )
        return read_images(items, [live.base.items_at(np.array([row]))[0]["position"]])[0]

    # What is written

    def enrol(
        self,
        identity: str,
        *,
        images: Sequence[bytes] = (),
        vectors: NDArray[np.float32] | None = None,
        attributes: Mapping[str, Any] | None = None,
        ids: Sequence[str] | None = None,
        who: str = "",
        quality: Quality = "off",
    ) -> Enrolment:
        """Add images or vectors of an identity; when this returns they are durable and found.

        What is enrolled already, with the same content, label and attributes, stays as it is.

        Args:
            identity: whose they are: their label.
            images: files' bytes, in any format Pillow reads; kept, so that another model can embed them.
            vectors: (M, D) float32 of unit length by the index's embedder, instead of images.
            attributes: values of the index's columns; the others are missing.
            ids: of the items; None: the identity, and the first digits of the content's SHA-256.
            who: enrols them, for the log.
            quality: "standard" and "strict" refuse images that are too small, blurred, dark or bright;
                "strict" also what resembles another identity more than this one.

        Raises:
            InvalidSetting: neither images nor vectors, an id twice, an id that exists with other content, or
                an attribute that the index does not have.
            InvalidData: an image that cannot be read, a vector of another dimension or length.
            GalleryBusy: another process has been writing for too long.
            WriteCommitted: it is durable, but this process failed after that.
        """
        self._refuse_writing()
        if not isinstance(identity, str) or not identity:
            raise InvalidSetting(f"An identity must be a text that is not empty; got {identity!r}.")
        if (vectors is None) == (not images):
            raise InvalidSetting("An enrolment must have images or vectors, one of them; got both or none.")
        for _ in range(_MOVES):
            state = self._state
            attributes = _checked_attributes(attributes or {}, state.ref)
            if vectors is None:
                embedded = self._embed(state, images, quality)
                contents = list(images)
            else:
                embedded = _checked_vectors(vectors, state.ref)
                contents = [vector.tobytes() for vector in embedded]
            if quality == "strict":
                check_duplicates(state.live, embedded, identity)
            digests = [hashlib.sha256(content).hexdigest() for content in contents]
            names = _checked_ids(ids, identity, digests)
            when = _now()
            entries = [
                Entry("enrol", id_, identity, attributes, digest, who, when, vector)
                for id_, digest, vector in zip(names, digests, embedded, strict=True)
            ]
            try:
                revision, _ = self._commit(_new_ones(entries, images), state.embedder)
            except ModelChanged:
                if vectors is not None:
                    raise
                continue
            return Enrolment(revision, identity, names)
        raise InvalidSetting(f"Gallery {self._base_name} must keep a model for an enrolment. Try again.")

    def update(
        self,
        id_: str,
        *,
        attributes: Mapping[str, Any] | None = None,
        label: str | None = None,
        who: str = "",
    ) -> Change:
        """Change some attributes of an item, or its label; the others stay.

        Args:
            id_: of a live item, enrolled or of the index.
            attributes: new values; None as a value makes it missing.
            label: None: it stays.
            who: changes it, for the log.

        Raises:
            MissingArtifact: there is no such item.
            InvalidSetting: an attribute that the index does not have, or nothing to change.
        """
        self._refuse_writing()
        if not attributes and label is None:
            raise InvalidSetting("An update must have attributes or a label; got neither.")
        if label is not None and (not isinstance(label, str) or not label):
            raise InvalidSetting(f"A label must be a text that is not empty; got {label!r}.")
        changed = _checked_attributes(attributes or {}, self._state.ref)

        def entries(state: _State, log: Log) -> list[tuple[Entry, bytes | None]]:
            columns = self._columns_now(id_, state, log)
            former = log.entry(id_)
            own = former if former is not None and former.op != "forget" else None
            entry = Entry(
                "update" if own is None else own.op,
                id_,
                columns["label"] if label is None else label,
                {**{name: columns[name] for name in state.ref.embeddings.items.attributes}, **changed},
                "" if own is None else own.content,
                who,
                _now(),
            )
            return [(entry, None)]

        revision, ids = self._commit(entries, None)
        return Change(revision, ids)

    def forget(
        self, id_: str | Sequence[str] | None = None, *, identity: str | None = None, who: str = ""
    ) -> Change:
        """Delete items: no search finds them when this returns, and the log holds nothing of them but ids.

        What an index version or a dataset holds of them is erased by `dml reindex` and `dml forget`.

        Args:
            id_: of a live item, or several.
            identity: all live items with this label instead.
            who: forgets them, for the log.

        Raises:
            MissingArtifact: there is no such item, or none of this identity; nothing is deleted.
        """
        self._refuse_writing()
        if (id_ is None) == (identity is None):
            raise InvalidSetting("What is forgotten must be an item or an identity, one of them.")
        wanted = [] if id_ is None else [id_] if isinstance(id_, str) else list(id_)

        def entries(state: _State, log: Log) -> list[tuple[Entry, bytes | None]]:
            ids = wanted
            if identity is not None:
                ids = state.live.ids_with_label(identity)
                if not ids:
                    raise MissingArtifact(
                        f"An identity must have an item in gallery {self._base_name}; {identity!r} has none."
                    )
            for each in ids:
                self._columns_now(each, state, log)
            when = _now()
            return [(Entry("forget", each, who=who, time=when), None) for each in dict.fromkeys(ids)]

        revision, ids = self._commit(entries, None)
        with suppress(DmlError), self._writing:  # what is left is erased by the next one
            assert self._writer is not None
            self._writer.truncate()
        return Change(revision, ids)

    # How it is written

    def _commit(
        self,
        entries: Callable[[_State, Log], Sequence[tuple[Entry, bytes | None]]],
        embedder: str | None,
    ) -> tuple[int, list[str]]:
        """Write in a transaction that all who wait share; (its revision, ids)."""
        request = _Request(entries, embedder)
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

    def _write(self, requests: list[_Request]) -> None:
        if self._writer is None:
            self._writer = Log(self._log_path(), create=True, busy_timeout_s=self._busy_timeout_s)
        log = self._writer
        for _ in range(_MOVES):
            with log.transaction():
                moved = storage.current(self._folder) != self._state.ref.version
                if not moved:
                    self._catch_up(log)
                    before = self._state
                    written, revision = self._write_all(requests, log)
            if not moved:
                break
            self.refresh()
        else:
            raise InvalidSetting(f"Gallery {self._base_name} must stay published for a write. Try again.")
        failure: BaseException | None = None
        if written:
            try:
                self._after_commit()
                self._apply(before, written, revision, log)
            except BaseException as error:
                failure = error
                self.rebuild()
        for request in requests:
            if request.done.done():
                continue
            if failure is not None:
                request.done.set_exception(
                    WriteCommitted(
                        f"A write to gallery {self._base_name} is durable as revision {revision}, but this "
                        f"process failed after that ({type(failure).__name__}: {failure}). Do not write it "
                        "again; it is read from the log.",
                        revision,
                    )
                )
            else:
                request.done.set_result((revision, request.ids))

    def _write_all(self, requests: list[_Request], log: Log) -> tuple[list[Entry], int]:
        """Write the entries of those requests that are possible; inside a transaction."""
        state, revision = self._state, self._state.live.revision + 1
        written: dict[str, Entry] = {}
        for request in requests:
            if request.done.done():
                continue
            try:
                if request.embedder not in (None, state.embedder):
                    raise ModelChanged(
                        f"Vectors must be by the model of gallery {self._base_name}; it changed to "
                        f"{state.ref.embeddings.embedder} meanwhile. Embed them again."
                    )
                entries = request.entries(state, log)
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

    def _apply(self, before: _State, written: Sequence[Entry], revision: int, log: Log) -> None:
        """Apply what was committed; where another thread moved on meanwhile, as the log has it."""
        with self._applying:
            if self._state is before:
                self._state = _applied(before, written, revision)
            else:
                self._catch_up(log)
            if self._state.live.revision < revision:
                raise AssertionError(
                    f"revision {revision} is committed, this process has {self._state.live.revision}"
                )

    def _columns_now(self, id_: str, state: _State, log: Log) -> dict[str, Any]:
        """The columns of an item as of the open transaction, which may have changed it already.

        Raises:
            MissingArtifact: there is none.
        """
        entry = log.entry(id_)
        columns = state.live.item(id_)
        if entry is not None and entry.revision > state.live.revision:
            (row,) = state.index.find_rows([id_])
            columns = None if entry.op == "forget" else _columns_of(entry, state, row)
        if columns is None:
            raise self._no_item(id_)
        return columns

    # How it is read

    def refresh(self) -> bool:
        """Look at the log, and at which version of the index is published; whether that changed."""
        ref = find_index(self._store, self._name)
        moved = ref.fingerprint != self._state.ref.fingerprint
        if moved:
            state = self._empty(self._open_base(ref))
        with self._applying:
            if moved:
                self._state, self._seen = state, -1
            self._poll(now=True)
        return moved

    def _poll(self, *, now: bool = False) -> None:
        """Apply what other processes have committed; ten times a second at the most, unless `now`."""
        if not now and not self._is_stale and time.monotonic() < self._next_poll:
            return
        if not self._applying.acquire(blocking=now or self._is_stale):
            return  # another thread is doing it
        try:
            self._next_poll = time.monotonic() + _POLLED_EVERY_S
            if self._reader is None and not self._open_reader():
                return
            assert self._reader is not None
            seen = self._reader.data_version
            if seen != self._seen or self._is_stale:
                self._catch_up(self._reader)
                self._seen, self._is_stale = seen, False
                if self._state.live.without_vector and self._pinned is None:
                    self._follow_model()  # which changed, as another process has seen
        finally:
            self._applying.release()

    def _follow_model(self) -> None:
        """Take the version that is published, if it is another one."""
        ref = find_index(self._store, self._name)
        if ref.fingerprint != self._state.ref.fingerprint:
            self._state, self._seen = self._empty(self._open_base(ref)), -1
            self._poll(now=True)

    def _open_reader(self) -> bool:
        """Whether there is a log to read."""
        if storage.is_remote(self._store) or not self._log_path().exists():
            return False
        log = Log(self._log_path(), busy_timeout_s=self._busy_timeout_s)
        if not log.is_ready:
            log.close()
            return False
        self._reader = log
        return True

    def _catch_up(self, log: Log) -> None:
        with self._applying:
            if self._is_stale:
                self._state = self._empty(self._state.index)
            state = self._state
            revision = log.revision
            if revision > state.live.revision:
                entries = log.entries_after(state.live.revision, state.embedder)
                revision = max([revision, *(entry.revision for entry in entries)])
                self._state = _applied(state, entries, revision)
            self._is_stale = False

    def rebuild(self) -> None:
        """Read everything again from the log, now or, if that fails, when it is next needed."""
        self._is_stale = True
        with suppress(Exception):
            self._poll(now=True)

    def _empty(self, index: Index) -> _State:
        delta = Delta(items_columns(index.ref.embeddings.items), index.ref.embeddings.dim)
        tombstones = Tombstones(np.empty(0, np.int64), index.ref.rows)
        live = LiveIndex(index, tombstones, delta, index.ref.covers_revision)
        return _State(index, live)

    def close(self) -> None:
        """Close the log."""
        with self._writing, self._applying:
            for log in (self._writer, self._reader):
                if log is not None:
                    log.close()
            self._writer = self._reader = None

    @property
    def _folder(self) -> str:
        return storage.named_folder(self._store, "indexes", self._base_name)

    def _log_path(self) -> Path:
        return log_path(self._store, self._base_name)

    def _entry(self, id_: str) -> Entry | None:
        with self._applying:
            return None if self._reader is None else self._reader.entry(id_)

    def _no_item(self, id_: str) -> MissingArtifact:
        return MissingArtifact(
            f"An item must be in gallery {self._base_name}; {id_!r} is not, or was forgotten."
        )

    def _package(self, ref: PackageRef) -> Package:
        with self._applying:
            if ref.fingerprint not in self._packages:
                self._packages = {ref.fingerprint: self._load(ref.uri)}  # the former model is not kept
            return self._packages[ref.fingerprint]

    def _embed(self, state: _State, images: Sequence[bytes], quality: Quality = "off") -> NDArray[np.float32]:
        """(M, D) of unit length, of images that pass the quality gate."""
        check_quality(quality, images)  # before the network has work
        package = self._package(require_package(state.ref.embeddings.embedder, "An enrolment of images"))
        if quality == "off":
            return np.asarray(package.embed(images), np.float32)
        raw = np.asarray(package.embed(images, unit_length=False), np.float32)
        norms = np.linalg.norm(raw, axis=1)
        check_quality(quality, images, norms)
        return np.asarray(raw / norms[:, None], np.float32)

    def _refuse_writing(self) -> None:
        if self._readonly or self._pinned is not None:
            why = "it was opened to read" if self._readonly else f"it was opened as {self._name}"
            raise InvalidSetting(
                f"A gallery must be opened to write, by the name of its index; {why}. "
                f"Open it: Gallery.open(store, {self._base_name!r})."
            )
        if storage.is_remote(self._store):
            raise InvalidSetting(
                f"A gallery must be in a store on a disk of this machine; got {self._store}. Enrol there, or "
                "load the items into Milvus (`dml load`)."
            )


def _applied(state: _State, entries: Sequence[Entry], revision: int) -> _State:
    """The state after some changes, in their order."""
    live = state.live
    last: dict[str, Entry] = {}
    for entry in entries:
        last.pop(entry.id, None)
        last[entry.id] = entry
    rows = dict(zip(last, state.index.find_rows(list(last)), strict=True))
    if any(id_.startswith(ERASED) for id_ in last):  # this version is older than the one that is without them
        ids = state.index.items["id"].to_pylist()
        rows |= {key: row for row, id_ in enumerate(ids) if (key := ERASED + digest_of_id(id_)) in last}
    items: list[dict[str, Any]] = []
    vectors: list[NDArray[np.float32]] = []
    without_vector = set(live.without_vector.difference(last))
    for entry in last.values():
        if entry.op == "forget":
            continue
        row = rows[entry.id]
        vector = live.delta.vector(entry.id) if entry.vector is None else entry.vector
        if vector is None and row is not None:
            (vector,) = state.index.vectors_of([entry.id])
        if vector is not None:
            items.append(_columns_of(entry, state, row))
            vectors.append(vector)
        elif entry.op == "enrol":  # else it was an item of the source, which has it no more
            without_vector.add(entry.id)
    deleted = {row for row in rows.values() if row is not None}
    deleted -= set(live.tombstones.rows.tolist()) if deleted else set()
    tombstones = live.tombstones
    if deleted:
        every = np.concatenate([tombstones.rows, np.fromiter(deleted, np.int64)])
        tombstones = Tombstones(every, state.ref.rows)
    delta = live.delta.without(last)
    if items:
        delta = delta.with_items(items, np.stack(vectors))
    return replace(state, live=live.at(tombstones, delta, revision, frozenset(without_vector)))


def _columns_of(entry: Entry, state: _State, row: int | None) -> dict[str, Any]:
    """An item by its columns: enrolled, or that of a row with other attributes."""
    columns: dict[str, Any] = dict.fromkeys(items_columns(state.ref.embeddings.items).names)
    if entry.op == "update" and row is not None:
        (columns,) = state.index.items_at(np.array([row]))
    else:
        columns["position"] = NO_POSITION
        if "sha256" in columns:
            columns["sha256"] = entry.content
    attributes = {name: value for name, value in entry.attributes.items() if name in columns}
    return {**columns, **attributes, "id": entry.id, "label": entry.label}


def _new_ones(
    entries: Sequence[Entry], images: Sequence[bytes]
) -> Callable[[_State, Log], list[tuple[Entry, bytes | None]]]:
    """Those of the entries that are not in the gallery already, with their images, if they have some."""

    def new(state: _State, log: Log) -> list[tuple[Entry, bytes | None]]:
        files: Sequence[bytes | None] = images or [None] * len(entries)
        each = zip(entries, files, strict=True)
        return [(entry, image) for entry, image in each if not _is_enrolled(entry, state, log)]

    return new


def _is_enrolled(entry: Entry, state: _State, log: Log) -> bool:
    """Whether an item is enrolled so already.

    Raises:
        InvalidSetting: another item has its id.
    """
    former = log.entry(entry.id)
    (row,) = state.index.find_rows([entry.id])
    names = state.ref.embeddings.items.attributes
    if former is not None and former.op == "enrol":
        content: str | None = former.content
        before: Mapping[str, Any] = {"label": former.label, **former.attributes}
    elif row is not None and (former is None or former.op == "update"):
        columns = (
            state.index.items_at(np.array([row]))[0] if former is None else _columns_of(former, state, row)
        )
        content, before = columns.get("sha256"), columns
    else:
        return False
    if content != entry.content:
        raise InvalidSetting(
            f"An id must name one image or vector; {entry.id!r} of gallery {state.ref.name} has other "
            "content. Forget it first, or enrol under another id."
        )
    now = {"label": entry.label, **entry.attributes}
    differ = [name for name in ("label", *names) if now.get(name) != before.get(name)]
    if differ:
        raise InvalidSetting(
            f"What is enrolled again must be as it was; {entry.id!r} of gallery {state.ref.name} has another "
            f"{differ[0]}. Change it: update({entry.id!r}, ...)."
        )
    return True


def _checked_vectors(vectors: NDArray[np.float32], ref: IndexRef) -> NDArray[np.float32]:
    try:
        checked = np.ascontiguousarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidData(f"vectors must be (M, {ref.embeddings.dim}) float32; got {error}.") from error
    if checked.ndim != 2 or checked.shape[1] != ref.embeddings.dim or not len(checked):
        raise InvalidData(
            f"vectors must be (M, {ref.embeddings.dim}) float32 by {ref.embeddings.embedder}; got "
            f"{checked.shape}."
        )
    lengths = np.linalg.norm(checked, axis=1)
    if not (np.abs(lengths - 1) <= _LENGTH_TOLERANCE).all():
        raise InvalidData(
            f"vectors must have length 1; got lengths {lengths.min()} to {lengths.max()}. Divide each by its "
            "length."
        )
    return checked


def _checked_ids(ids: Sequence[str] | None, identity: str, digests: Sequence[str]) -> list[str]:
    if ids is None:
        names = [f"{identity}/{digest[:_ID_DIGITS]}" for digest in digests]
    elif isinstance(ids, str) or len(ids) != len(digests):
        raise InvalidSetting(f"ids must be {len(digests)}, one for each image or vector; got {ids!r}.")
    else:
        names = list(ids)
    for name in names:
        if not isinstance(name, str) or not name or "\0" in name:
            raise InvalidSetting(f"An id must be a text that is not empty; got {name!r}.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidSetting(f"ids must be different, as their images; got {twice!r} twice.")
    return names


def _checked_attributes(attributes: Mapping[str, Any], ref: IndexRef) -> dict[str, Any]:
    known = ref.embeddings.items.attributes
    checked = {}
    for name, value in attributes.items():
        if name not in known:
            raise InvalidSetting(
                f"attributes must be of the index's, {list(known)}; got {name!r}."
                f"{did_you_mean(str(name), known)}"
            )
        kind = known[name]
        is_right = isinstance(value, _PYTHON_TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
        if kind == "int64" and is_right:
            is_right = -(2**63) <= value < 2**63
        if kind == "double" and is_right:
            is_right = bool(np.isfinite(value))
        if value is not None and not is_right:
            raise InvalidSetting(
                f"Attribute {name!r} must be {kind} or missing; got {type(value).__name__} {value!r}."
            )
        checked[name] = float(value) if kind == "double" and value is not None else value
    return checked


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def forget_items(store: str, name: str, ids: Sequence[str], identity: str | None = None) -> list[str]:
    """Forget items of a gallery, or all of an identity; returns their ids. Raises as `Gallery.forget`."""
    gallery = Gallery.open(store, name)
    try:
        return gallery.forget(None if identity is not None else list(ids), identity=identity).ids
    finally:
        gallery.close()

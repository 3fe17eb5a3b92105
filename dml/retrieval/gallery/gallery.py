"""A gallery: a published index that grows and shrinks between its builds.

What is acknowledged is on the disk, and every later search of this process sees it; those of other processes
of this machine see it when they look at the log again, which they do ten times a second.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dml.data.dataset import read_images
from dml.errors import DmlError, InvalidSetting, MissingArtifact
from dml.faces import NoFace
from dml.labels import checked_label, require_text
from dml.models.package import Package, load_package
from dml.preprocessing import UnreadableImage
from dml.refs import DatasetRef, IndexRef, PackageRef, require_package
from dml.retrieval.changes import NO_POSITION
from dml.retrieval.gallery.checks import (
    checked_attributes,
    checked_ids,
    checked_vectors,
    require_unit_length,
)
from dml.retrieval.gallery.current import CurrentState
from dml.retrieval.gallery.delta import EXACT_ROWS
from dml.retrieval.gallery.entries import enrol_entries, forget_entries, no_item, update_entries
from dml.retrieval.gallery.live import LiveIndex
from dml.retrieval.gallery.log import BUSY_TIMEOUT_S, Entry, timestamp
from dml.retrieval.gallery.quality import DuplicateCheck, Quality, check_norms, check_quality
from dml.retrieval.gallery.state import State
from dml.retrieval.gallery.writer import MOST_MOVES, ModelChanged, Writer
from dml.retrieval.search import BuiltIndex, Index
from dml.retrieval.shards import open_index


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


class Gallery:
    """A published index and its log; can be shared between threads, and opened by many processes.

    Example:
        gallery = Gallery.open("dml-store", "shop")
        gallery.enrol("alice", images=[Path("alice.jpg").read_bytes()], attributes={"region": "east"})
        gallery.forget(identity="alice")
    """

    def __init__(
        self, current: CurrentState, writer: Writer, *, readonly: bool, load: Callable[[str], Package]
    ) -> None:
        self._current, self._writer, self._readonly, self._load = current, writer, readonly, load
        self._packages: dict[str, Package] = {}
        self._loading = threading.Lock()

    @classmethod
    def open(
        cls,
        store: str,
        name: str,
        *,
        readonly: bool = False,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        exact_rows: int = EXACT_ROWS,
        open_base: Callable[[IndexRef], BuiltIndex] = open_index,
        load: Callable[[str], Package] = load_package,
        after_commit: Callable[[], None] = lambda: None,
    ) -> Self:
        """Open a gallery.

        Args:
            store: the store's folder or s3:// URI.
            name: of its index: NAME, or NAME@VERSION to search that version with what happened since.
            readonly: refuse to write.
            busy_timeout_s: how long a write waits for another process.
            exact_rows: up to so many enrolled items are compared exactly; more are in inverted lists.
            open_base: opens a version of the index.
            load: loads the package at a URI; a service gives the one that it has loaded already.
            after_commit: called between commit and acknowledgement; tests fail there.

        Raises:
            MissingArtifact: no such index.
            CorruptArtifact: index or log are damaged.
        """
        current = CurrentState(store, name, open_base, busy_timeout_s=busy_timeout_s, exact_rows=exact_rows)
        writer = Writer(current, busy_timeout_s=busy_timeout_s, after_commit=after_commit)
        return cls(current, writer, readonly=readonly, load=load)

    # What there is

    @property
    def live(self) -> Index:
        """The index as it is now: of one revision, whatever is written meanwhile.

        Where nothing was enrolled or forgotten it is the published index itself.
        """
        state = self._current.latest()
        live = state.live
        return live if live.tombstones or live.delta.num_rows or live.without_vector else state.index

    @property
    def ref(self) -> IndexRef:
        """The version of the index."""
        return self._current.state.ref

    @property
    def revision(self) -> int:
        """Of the last transaction that this process has seen."""
        return self._current.latest().live.revision

    @property
    def size(self) -> GallerySize:
        """How much happened since the index was built."""
        live = self._current.latest().live
        return GallerySize(live.delta.num_rows, len(live.tombstones))

    def package_of(self, ref: IndexRef) -> Package | None:
        """What embeds images for a version of the index; None: a model that is not in the store did."""
        embedder = ref.embeddings.embedder
        return self._package(embedder) if isinstance(embedder, PackageRef) else None

    def holds(self, id_: str) -> bool:
        """Whether there is a live item with this id."""
        return self._current.latest().live.item(id_) is not None

    def item(self, id_: str) -> Item:
        """A live item; raises MissingArtifact where there is none with this id."""
        live = self._current.latest().live
        columns = live.item(id_)
        if columns is None:
            raise no_item(id_, self._current.name)
        names = live.ref.embeddings.items.attributes
        attributes = {name: columns.get(name) for name in names}
        enrolled = live.delta.item(id_) is not None
        entry = self._current.entry(id_) if enrolled else None
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
        live = self._current.latest().live
        if live.item(id_) is None:
            raise no_item(id_, self._current.name)
        image = self._current.image(id_)
        if image is not None:
            return image
        items, position = live.ref.embeddings.items, _positions(live, [id_]).get(id_)
        if position is None or not isinstance(items, DatasetRef):
            raise MissingArtifact(
                f"A picture must be of an item with an image; {id_!r} of {self._current.name} is a vector."
            )
        return read_images(items, [position])[0]

    def ids_with_picture(self, ids: Sequence[str]) -> set[str]:
        """Those of these live items that `picture` has an image of; nothing of an image is read."""
        found = self._current.ids_with_image(ids)
        live = self._current.latest().live
        if isinstance(live.ref.embeddings.items, DatasetRef):
            found |= _positions(live, [id_ for id_ in ids if id_ not in found]).keys()
        return found

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
            identity: whose they are: their label, kept as an ingest keeps labels: without outer white space,
                in Unicode form NFC.
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
        identity = checked_label("An identity", identity)
        require_text("who", who, or_empty=True)
        if (vectors is None) == (not images):
            raise InvalidSetting("An enrolment must have images or vectors, one of them; got both or none.")
        for _ in range(MOST_MOVES):
            state = self._current.state
            attributes = checked_attributes(attributes or {}, state.ref)
            if vectors is None:
                embedded = self._embed(state, images, quality)
                contents = list(images)
            else:
                embedded = checked_vectors(vectors, state.ref)
                contents = [vector.tobytes() for vector in embedded]
            check = None
            if quality == "strict":
                check = DuplicateCheck(embedded, identity)
                check(state.live)
            digests = [hashlib.sha256(content).hexdigest() for content in contents]
            names = checked_ids(ids, identity, digests)
            when = timestamp()
            entries = [
                Entry("enrol", id_, identity, attributes, digest, who, when, vector)
                for id_, digest, vector in zip(names, digests, embedded, strict=True)
            ]
            try:
                revision, _ = self._writer.commit(enrol_entries(entries, images, check), state.embedder)
            except ModelChanged:
                if vectors is not None:
                    raise
                continue
            return Enrolment(revision, identity, names)
        raise InvalidSetting(f"Gallery {self._current.name} must keep a model for an enrolment. Try again.")

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
        require_text("An id", id_)
        require_text("who", who, or_empty=True)
        if label is not None:
            label = checked_label("A label", label)
        changed = checked_attributes(attributes or {}, self._current.state.ref)
        revision, ids = self._writer.commit(update_entries(id_, changed, label, who), None)
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
        require_text("who", who, or_empty=True)
        wanted: list[Any] = []
        if identity is not None:
            require_text("An identity", identity)
        elif id_ is not None:
            wanted = [id_] if isinstance(id_, str) or not isinstance(id_, Sequence) else list(id_)
            if not wanted:
                raise InvalidSetting("What is forgotten must be named; got no id.")
            for each in wanted:
                require_text("An id", each)
        revision, ids = self._writer.commit(forget_entries(wanted, identity, who), None)
        with suppress(DmlError):  # what is left is erased by the next one
            self._writer.truncate()
        return Change(revision, ids)

    # What it holds open

    def refresh(self) -> bool:
        """Look at the log, and at which version of the index is published; whether that changed."""
        return self._current.refresh()

    def rebuild(self) -> None:
        """Read everything again from the log, now or, if that fails, when it is next needed."""
        self._current.rebuild()

    def close(self) -> None:
        """Close the log."""
        self._writer.close()
        self._current.close()

    def _package(self, ref: PackageRef) -> Package:
        with self._loading:
            if ref.fingerprint not in self._packages:
                self._packages = {ref.fingerprint: self._load(ref.uri)}  # the former model is not kept
            return self._packages[ref.fingerprint]

    def _embed(self, state: State, images: Sequence[bytes], quality: Quality = "off") -> NDArray[np.float32]:
        """(M, D) of unit length, of images that pass the quality gate."""
        package = self._package(require_package(state.ref.embeddings.embedder, "An enrolment of images"))
        try:
            check_quality(quality, images, package.detector)  # before the network has work
            if quality == "off":
                embedded = np.asarray(package.embed(images), np.float32)
                numbered = [f"image {number} of {len(images)}" for number in range(1, len(images) + 1)]
                require_unit_length(embedded, numbered)
                return embedded
            raw = np.asarray(package.embed(images, unit_length=False), np.float32)
        except (UnreadableImage, NoFace):
            if len(images) > 1:
                _raise_of_which(images, package)
            raise
        norms = np.linalg.norm(raw, axis=1)
        check_norms(quality, norms)
        return np.asarray(raw / norms[:, None], np.float32)

    def _refuse_writing(self) -> None:
        if self._readonly or self._current.is_pinned:
            why = "it was opened to read" if self._readonly else f"it was opened as {self._current.opened_as}"
            raise InvalidSetting(
                f"A gallery must be opened to write, by the name of its index; {why}. "
                f"Open it: Gallery.open(store, {self._current.name!r})."
            )


def _positions(live: LiveIndex, ids: Sequence[str]) -> dict[str, int]:
    """The rows of the index's dataset, by id, of those items that come from it."""
    rows = {id_: row for id_, row in zip(ids, live.base.find_rows(ids), strict=True) if row is not None}
    if not rows:
        return {}
    items = live.base.items_at(np.array(list(rows.values()), dtype=np.int64))
    positions = {id_: int(item["position"]) for id_, item in zip(rows, items, strict=True)}
    return {id_: position for id_, position in positions.items() if position != NO_POSITION}


def _raise_of_which(images: Sequence[bytes], package: Package) -> None:
    """Raise the error of the first image that cannot be embedded, with its number."""
    for number, image in enumerate(images, 1):
        try:
            package.prepare(image)
        except (UnreadableImage, NoFace) as error:
            raise type(error)(f"Image {number} of {len(images)}: {error}") from error

"""Open indexes by name, switched to newly published versions while requests are answered.

A request holds one `OpenIndex` from its first step to its last: index, model and thresholds that belong
together. A version that is replaced is closed when its last request has ended.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from weakref import WeakValueDictionary

from dml import storage
from dml.errors import DmlError, MissingArtifact, Unreachable, did_you_mean
from dml.extras import what_to_install
from dml.models.package import Package, load_package
from dml.refs import DatasetRef, IndexRef, PackageRef, ThresholdsRef, require_package
from dml.retrieval.gallery import Gallery, LiveIndex
from dml.retrieval.identifier import Identifier
from dml.retrieval.index import published_names
from dml.retrieval.overview import ColumnOverview, column_overviews
from dml.retrieval.search import Index
from dml.retrieval.shards import ShardedIndex, open_index
from dml.retrieval.thresholds import Thresholds, find_thresholds, find_thresholds_ref
from dml.serving.app.problems import Refused

logger = logging.getLogger(__name__)


class Packages:
    """Packages by URI: loaded once, whichever indexes use them, dropped with the last of these."""

    def __init__(self) -> None:
        self._loaded: WeakValueDictionary[str, Package] = WeakValueDictionary()
        self._lock = threading.Lock()

    def load(self, uri: str) -> Package:
        """The package at a URI."""
        with self._lock:
            package = self._loaded.get(uri)
            if package is None:
                package = self._loaded[uri] = load_package(uri)
            return package

    def of(self, ref: IndexRef) -> Package | None:
        """The package that embedded an index; None: it is not in the store."""
        embedder = ref.embeddings.embedder
        return self.load(embedder.uri) if isinstance(embedder, PackageRef) else None

    @property
    def num_loaded(self) -> int:
        return len(self._loaded)


def base_of(index: Index) -> Index:
    """The index as it was built, of one with what was enrolled since."""
    return index.base if isinstance(index, LiveIndex) else index


class _Uses:
    """How many use an index; the last one to end closes it once it was replaced."""

    def __init__(self, index: Index) -> None:
        self._index, self._lock = index, threading.Lock()
        self._users, self._is_retired, self.is_closed = 0, False, False

    def begin(self) -> bool:
        """False: it is closed."""
        with self._lock:
            self._users += not self.is_closed
            return not self.is_closed

    def end(self) -> None:
        with self._lock:
            self._users -= 1
        self._close_unused()

    def retire(self) -> None:
        with self._lock:
            self._is_retired = True
        self._close_unused()

    def _close_unused(self) -> None:
        with self._lock:
            closes = self._is_retired and not self._users and not self.is_closed
            self.is_closed |= closes
        if closes and isinstance(self._index, ShardedIndex):
            self._index.close()


class OpenIndex:
    """A version of an index at a revision of its gallery, with the model and thresholds that go with it.

    Args:
        store: the store's URI.
        index: open; a value, whatever is enrolled meanwhile.
        revision: of the gallery; the index has all that was written up to it.
        gallery: which it is a revision of.
        package: what embeds queries; None: it is not in the store.
        thresholds: where the calibration is; None: there is none.
        uses: of the base that it shares with other revisions.
    """

    def __init__(
        self,
        store: str,
        index: Index,
        revision: int,
        gallery: Gallery,
        package: Package | None,
        thresholds: ThresholdsRef | None,
        uses: _Uses,
    ) -> None:
        self.store, self.index, self.revision = store, index, revision
        self.gallery, self.package = gallery, package
        self.thresholds_ref, self.uses = thresholds, uses

    @property
    def ref(self) -> IndexRef:
        return self.index.ref

    @property
    def base(self) -> Index:
        """The index without what was enrolled since it was built."""
        return base_of(self.index)

    @property
    def enrolled(self) -> int:
        """Items since the index was built, changed ones among them."""
        return self.index.delta.num_rows if isinstance(self.index, LiveIndex) else 0

    @property
    def forgotten(self) -> int:
        """Items of the index that were forgotten or changed since it was built."""
        return len(self.index.tombstones) if isinstance(self.index, LiveIndex) else 0

    @property
    def embedder(self) -> str:
        """Fingerprint of what embedded the items."""
        return self.ref.embeddings.embedder.fingerprint

    @property
    def required_package(self) -> Package:
        """Raises IncompatibleArtifact where the model is not in the store."""
        if self.package is None:
            require_package(self.ref.embeddings.embedder, "A search by image")
        assert self.package is not None
        return self.package

    @property
    def has_pictures(self) -> bool:
        return isinstance(self.ref.embeddings.items, DatasetRef)

    @cached_property
    def thresholds(self) -> Thresholds | None:
        return None if self.thresholds_ref is None else find_thresholds(self.store, self.ref)

    @cached_property
    def identifier(self) -> Identifier:
        return Identifier(self.index, self.thresholds)

    @cached_property
    def columns(self) -> list[ColumnOverview]:
        return column_overviews(self.index)


def require_calibration(opened: OpenIndex) -> None:
    """Raise Refused where an error rate is promised, and there is no calibration."""
    if opened.thresholds_ref is None:
        raise Refused(
            409,
            "not_calibrated",
            "An index must be calibrated to promise an error rate",
            f"{opened.ref} is not",
            f"Do: dml calibrate {opened.ref.name}; or give a threshold.",
        )


def require_store(store: str) -> None:
    """Raise Unreachable where the store has gone, as a disk that is no longer mounted."""
    try:
        storage.require_store(store)
    except MissingArtifact:
        raise Unreachable(
            f"The store must be there to be read and written; it has no {storage.MARKER} now. Mount it "
            "again, or end the service."
        ) from None


class OpenIndexes:
    """The indexes that are served.

    Args:
        store: the store's URI.
        names: of the indexes; empty: all that are published, new ones too.
    """

    def __init__(self, store: str, names: Sequence[str] = ()) -> None:
        self._store, self._names = store, tuple(names)
        self.packages = Packages()
        self._galleries: dict[str, Gallery] = {}
        self._opened: dict[str, OpenIndex] = {}
        self.unavailable: dict[str, str] = {}
        """Name to why it cannot be opened."""
        self._refreshing, self._taking = threading.Lock(), threading.Lock()

    @property
    def opened(self) -> dict[str, OpenIndex]:
        """By name; what `hold` gives."""
        return self._opened

    @contextmanager
    def hold(self, name: str) -> Iterator[OpenIndex]:
        """The index in use, open until the end of the block.

        Raises:
            MissingArtifact: there is no such index.
        """
        while True:
            opened = self._opened.get(name)
            if opened is None:
                raise self._missing(name)
            if opened.uses.begin():
                break
        try:
            yield opened
        finally:
            opened.uses.end()

    def refresh(self) -> list[str]:
        """Take versions, thresholds and enrolments that are new into use; blocks. The names that changed."""
        with self._refreshing:
            changed = []
            try:
                require_store(self._store)
                names = self._names or published_names(self._store)
            except (DmlError, OSError) as error:
                for name in {*self._names, *self._opened}:
                    self._cannot(name, error)
                return []
            for name in names:
                try:
                    if self._refresh_one(name):
                        changed.append(name)
                    self.unavailable.pop(name, None)
                except ModuleNotFoundError as error:  # of what its model needs, such as a face detector's
                    self._cannot(name, MissingArtifact(what_to_install(error) or str(error)))
                except (DmlError, OSError) as error:
                    self._cannot(name, error)
            self.unavailable = {name: why for name, why in self.unavailable.items() if name in names}
            for name in [name for name in self._opened if name not in names]:
                self._drop(name)
                changed.append(name)
            return changed

    def take(self, name: str) -> OpenIndex:
        """What the gallery of an open index is now: after a write, it shows what was written."""
        self._take(name, self._opened[name].thresholds_ref)
        return self._opened[name]

    def close(self) -> None:
        """Close all, each when its last request has ended."""
        for name in list(self._opened):
            self._drop(name)

    def _cannot(self, name: str, error: Exception) -> None:
        """The version that is open goes on answering."""
        if self.unavailable.get(name) != str(error):
            logger.warning("index %s cannot be refreshed: %s", name, error)
        self.unavailable[name] = str(error)

    def _refresh_one(self, name: str) -> bool:
        gallery = self._galleries.get(name)
        if gallery is None:
            gallery = Gallery.open(self._store, name, open_base=_open_checked, load=self.packages.load)
            self._galleries[name] = gallery
        else:
            gallery.refresh()
        return self._take(name, find_thresholds_ref(self._store, gallery.ref))

    def _take(self, name: str, thresholds: ThresholdsRef | None) -> bool:
        """Publish what a gallery is now; whether it is another revision, version or calibration."""
        with self._taking:
            former = self._opened.get(name)
            gallery = self._galleries[name]
            revision = gallery.revision  # before the index, which may then have more than it says, never less
            index = gallery.live
            if (
                former is not None
                and index is former.index
                and revision == former.revision
                and thresholds == former.thresholds_ref
            ):
                return False
            if thresholds is not None and thresholds.index.fingerprint != index.ref.fingerprint:
                thresholds = find_thresholds_ref(self._store, index.ref)  # another version by now
            package = self.packages.of(index.ref)
            stays = former is not None and base_of(index) is former.base
            uses = former.uses if stays and former is not None else _Uses(base_of(index))
            opened = OpenIndex(self._store, index, revision, gallery, package, thresholds, uses)
            self._opened = {**self._opened, name: opened}  # a new dict: others read the former one
        if not stays:
            logger.info("serving %s", index.ref)
            if former is not None:
                former.uses.retire()
        return True

    def _drop(self, name: str) -> None:
        opened = self._opened[name]
        self._opened = {key: each for key, each in self._opened.items() if key != name}
        opened.uses.retire()
        self._galleries.pop(name).close()

    def _missing(self, name: str) -> MissingArtifact:
        if name in self.unavailable:
            return MissingArtifact(f"Index {name} must be readable; it is not: {self.unavailable[name]}")
        there = sorted(self._opened)
        return MissingArtifact(
            f"An index must be served to be asked; {name[:100]!r} is not. There are "
            f"{', '.join(there) or 'none'}.{did_you_mean(name[:100], there)}"
        )


def _open_checked(ref: IndexRef) -> Index:
    """A version that cannot be searched is not taken into use."""
    index = open_index(ref)
    index.check()
    return index

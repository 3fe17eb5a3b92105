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
from dml.errors import DmlError, MissingArtifact, did_you_mean
from dml.models.package import Package, load_package
from dml.refs import DatasetRef, IndexRef, PackageRef, ThresholdsRef, require_package
from dml.retrieval.identifier import Identifier
from dml.retrieval.index import find_index, published_names
from dml.retrieval.overview import ColumnOverview, column_overviews
from dml.retrieval.search import Index
from dml.retrieval.shards import ShardedIndex, open_index
from dml.retrieval.thresholds import Thresholds, find_thresholds, find_thresholds_ref
from dml.serving.app.problems import Refused

logger = logging.getLogger(__name__)


class Packages:
    """Packages by fingerprint: loaded once, whichever indexes use them, dropped with the last of these."""

    def __init__(self) -> None:
        self._loaded: WeakValueDictionary[str, Package] = WeakValueDictionary()
        self._lock = threading.Lock()

    def load(self, ref: IndexRef) -> Package | None:
        """The package that embedded an index; None: it is not in the store."""
        embedder = ref.embeddings.embedder
        if not isinstance(embedder, PackageRef):
            return None
        with self._lock:
            package = self._loaded.get(embedder.fingerprint)
            if package is None:
                package = self._loaded[embedder.fingerprint] = load_package(embedder.uri)
            return package

    @property
    def num_loaded(self) -> int:
        return len(self._loaded)


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
    """An index version with what embeds its queries and decides on its answers.

    Args:
        store: the store's URI.
        index: open.
        package: what embeds queries; None: it is not in the store.
        thresholds: where the calibration is; None: there is none.
    """

    def __init__(
        self,
        store: str,
        index: Index,
        package: Package | None,
        thresholds: ThresholdsRef | None,
        uses: _Uses | None = None,
    ) -> None:
        self.store, self.index, self.package, self.thresholds_ref = store, index, package, thresholds
        self.uses = uses or _Uses(index)

    def calibrated(self, thresholds: ThresholdsRef | None) -> "OpenIndex":
        """The same index with other thresholds."""
        return OpenIndex(self.store, self.index, self.package, thresholds, self.uses)

    @property
    def ref(self) -> IndexRef:
        return self.index.ref

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


class OpenIndexes:
    """The indexes that are served.

    Args:
        store: the store's URI.
        names: of the indexes; empty: all that are published, new ones too.
    """

    def __init__(self, store: str, names: Sequence[str] = ()) -> None:
        self._store, self._names = store, tuple(names)
        self.packages = Packages()
        self._opened: dict[str, OpenIndex] = {}
        self.unavailable: dict[str, str] = {}
        """Name to why it cannot be opened."""
        self._refreshing = threading.Lock()

    @property
    def opened(self) -> dict[str, OpenIndex]:
        """By name; what `hold` gives."""
        return dict(self._opened)

    @contextmanager
    def hold(self, name: str) -> Iterator[OpenIndex]:
        """The version of an index that is in use, open until the end of the block.

        Raises:
            InvalidSetting: no name.
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
        """Open versions and thresholds that were published since; blocks. The names that changed."""
        with self._refreshing:
            changed = []
            names = self._names or published_names(self._store)
            for name in names:
                try:
                    if self._refresh_one(name):
                        changed.append(name)
                    self.unavailable.pop(name, None)
                except DmlError as error:  # the version that is open goes on answering
                    if self.unavailable.get(name) != str(error):
                        logger.warning("index %s cannot be refreshed: %s", name, error)
                    self.unavailable[name] = str(error)
            for name in [name for name in self._opened if name not in names]:
                self._opened[name].uses.retire()
                self._opened = {key: each for key, each in self._opened.items() if key != name}
                changed.append(name)
            return changed

    def close(self) -> None:
        """Close all, each when its last request has ended."""
        for opened in self._opened.values():
            opened.uses.retire()
        self._opened = {}

    def _refresh_one(self, name: str) -> bool:
        former = self._opened.get(name)
        version = storage.current(storage.named_folder(self._store, "indexes", name))
        if former is not None and former.ref.version == version:
            thresholds = find_thresholds_ref(self._store, former.ref)
            if thresholds == former.thresholds_ref:
                return False
            self._opened = {**self._opened, name: former.calibrated(thresholds)}
            return True
        ref = find_index(self._store, name)
        package = self.packages.load(ref)
        index = open_index(ref)
        index.check()  # a version that cannot be searched is not taken
        opened = OpenIndex(self._store, index, package, find_thresholds_ref(self._store, ref))
        self._opened = {**self._opened, name: opened}  # a new dict: others read the former one
        if former is not None:
            former.uses.retire()
        logger.info("serving %s", ref)
        return True

    def _missing(self, name: str) -> MissingArtifact:
        if name in self.unavailable:
            return MissingArtifact(f"Index {name} must be readable; it is not: {self.unavailable[name]}")
        there = sorted(self._opened)
        return MissingArtifact(
            f"An index must be served to be asked; {name[:100]!r} is not. There are "
            f"{', '.join(there) or 'none'}.{did_you_mean(name[:100], there)}"
        )

"""Open indexes by name, switched to newly published versions while requests are answered.

A version that is replaced is closed when its last request has ended.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dml.errors import DmlError, MissingArtifact, did_you_mean
from dml.extras import what_to_install
from dml.refs import IndexRef, ThresholdsRef
from dml.retrieval.gallery import Gallery
from dml.retrieval.index import published_names
from dml.retrieval.search import BuiltIndex
from dml.retrieval.shards import open_index
from dml.retrieval.thresholds import find_thresholds_ref
from dml.serving.app.opened import OpenIndex, Uses, require_store
from dml.serving.app.packages import Packages
from dml.serving.app.problems import told

logger = logging.getLogger(__name__)


class OpenIndexes:
    """The indexes that are served.

    Args:
        store: the store's URI.
        names: of the indexes; empty: all that are published, new ones too.
        packages: loads what embeds the queries.
    """

    def __init__(self, store: str, names: Sequence[str] = (), *, packages: Packages | None = None) -> None:
        self._store, self._names = store, tuple(names)
        self.packages = packages or Packages()
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
        text = told(error)
        if self.unavailable.get(name) != text:
            logger.warning("index %s cannot be refreshed: %s", name, error)
        self.unavailable[name] = text

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
            stays = former is not None and index.base is former.index.base
            uses = former.uses if stays and former is not None else Uses(index.base)
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


def _open_checked(ref: IndexRef) -> BuiltIndex:
    """A version that cannot be searched is not taken into use."""
    index = open_index(ref)
    index.check()
    return index

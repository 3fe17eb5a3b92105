"""An open version of an index with its model and thresholds, counted by those who use it.

A request holds one from its first step to its last.
"""

import threading
from functools import cached_property

from dml import storage
from dml.errors import MissingArtifact, Unreachable
from dml.models.package import Package
from dml.refs import DatasetRef, IndexRef, ThresholdsRef, require_package
from dml.retrieval.gallery import Gallery
from dml.retrieval.identifier import Identifier
from dml.retrieval.overview import ColumnOverview, column_overviews
from dml.retrieval.search import Index
from dml.retrieval.thresholds import Thresholds, find_thresholds
from dml.serving.app.problems import Refused


class Uses:
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
        if closes:
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
        uses: Uses,
    ) -> None:
        self.store, self.index, self.revision = store, index, revision
        self.gallery, self.package = gallery, package
        self.thresholds_ref, self.uses = thresholds, uses

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


def require_store(store: str) -> None:
    """Raise Unreachable where the store has gone, as a disk that is no longer mounted."""
    try:
        storage.require_store(store)
    except MissingArtifact:
        raise Unreachable(
            f"The store must be there to be read and written; it has no {storage.MARKER} now. Mount it "
            "again, or end the service."
        ) from None

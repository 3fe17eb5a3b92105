"""A published dataset version to look through: pages of items, pictures, and what is suspect among them."""

import io
from collections import OrderedDict
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from dml import storage
from dml.config import DatasetReportConfig
from dml.data.dataset import find_dataset, read_images, read_rows
from dml.data.quarantine import QUARANTINE, read_quarantine
from dml.data.sources.sample import Problem
from dml.embedding.table import find_embeddings
from dml.errors import CorruptArtifact, IncompatibleArtifact, MissingArtifact
from dml.preprocessing import decode
from dml.refs import DatasetRef, EmbeddingsRef
from dml.report.dataset_findings import all_pairs, suspected_labels
from dml.report.dataset_view import DatasetView, EmbeddedDataset
from dml.reports import Between, NearDuplicatePair, SuspectedLabel
from dml.retrieval.filters import Where, matching_rows
from dml.retrieval.filters.columns import ItemColumns
from dml.retrieval.overview import ColumnOverview, table_overviews
from dml.serving.shared_call import SharedCall

_FILTERED = ("label", "split", "width", "height")
_REDUCING_GAP = 3.0  # Pillow: "almost indistinguishable" from resizing the whole, and several times faster
_QUALITY = 85
_MOST_OPEN = 4


class BrowsedDataset:
    """The rows of a dataset version without their images, in memory; may be shared between threads.

    Args:
        store: the store's URI.
        ref: the version.

    Example:
        dataset = BrowsedDataset("dml-store", find_dataset("dml-store", "shop"))
        total, items = dataset.page("label = 'shoe'", first=0, most=60)
    """

    def __init__(self, store: str, ref: DatasetRef) -> None:
        self._store, self.ref = store, ref
        self._rows = read_rows(ref)
        self._looking = Lock()  # what both need is computed once
        self._near_duplicates = SharedCall(self._find_near_duplicates, keeps=True)
        self._suspected_labels = SharedCall(self._find_suspected_labels, keeps=True)

    def page(self, where: Where = None, *, first: int, most: int) -> tuple[int, list[dict[str, Any]]]:
        """How many items satisfy a filter, and the rows of some of them, in the order of the dataset.

        Args:
            where: a filter as of `Searcher.search`, of the dataset's columns.
            first: number of the first one among those that match.
            most: number of rows.

        Raises:
            InvalidFilter: the filter cannot be read or does not fit.
        """
        rows = np.flatnonzero(matching_rows(self._rows, where, refuse_absent=False))
        chosen = self._rows.take(rows[first : first + most])
        return len(rows), [
            {name: _finite(value) for name, value in row.items()} for row in chosen.to_pylist()
        ]

    @cached_property
    def columns(self) -> list[ColumnOverview]:
        """What filters are made of: labels, splits and sizes, then the attributes."""
        return table_overviews(self._rows, ItemColumns(self._rows), (*_FILTERED, *self.ref.attributes))

    def picture(self, id_: str, side: int) -> bytes:
        """An item's image as WebP, at most `side` pixels wide and high.

        Raises:
            MissingArtifact: no such item.
        """
        return small_picture(read_images(self.ref, [self._position(id_)])[0], side)

    def _position(self, id_: str) -> int:
        position = self._position_of.get(id_)
        if position is None:
            raise MissingArtifact(
                f"An item must be in dataset {self.ref}; {id_[:100]!r} is not. A newer version may lack it: "
                "list the items again."
            )
        return position

    @cached_property
    def _position_of(self) -> dict[str, int]:
        return {id_: position for position, id_ in enumerate(self._rows["id"].to_pylist())}

    @cached_property
    def quarantine(self) -> list[Problem]:
        """What was refused when the version was ingested."""
        return sorted(read_quarantine(storage.join(self.ref.uri, QUARANTINE)))

    def near_duplicates(self, wait_s: float | None = None) -> list[tuple[Between, NearDuplicatePair]]:
        """Every image with a near-duplicate, beside its nearest; the first call decodes all images.

        Args:
            wait_s: None: until they are found.

        Raises:
            TimeoutError: they are not found yet; the search for them goes on.
        """
        return self._near_duplicates(wait_s)

    def suspected_labels(self, wait_s: float | None = None) -> tuple[str, list[SuspectedLabel]]:
        """What embedded the dataset, and the items whose nearest neighbours agree on another label.

        Args:
            wait_s: None: until they are found.

        Raises:
            MissingArtifact: nothing has embedded this version.
            TimeoutError: they are not found yet; the search for them goes on.
        """
        return self._suspected_labels(wait_s)

    @cached_property
    def _view(self) -> DatasetView:
        return DatasetView(self.ref, DatasetReportConfig())

    def _find_near_duplicates(self) -> list[tuple[Between, NearDuplicatePair]]:
        with self._looking:
            return list(all_pairs(self._view))

    def _find_suspected_labels(self) -> tuple[str, list[SuspectedLabel]]:
        embeddings = _embeddings_of(self._store, self.ref)
        with self._looking:
            found = suspected_labels(self._view, EmbeddedDataset(self._view, embeddings))
        return str(embeddings.embedder), found


class BrowsedDatasets:
    """The datasets of a store that were looked through last, each in its current version."""

    def __init__(self, store: str) -> None:
        self.store = store
        self._opened: OrderedDict[str, BrowsedDataset] = OrderedDict()
        self._lock = Lock()

    def open(self, name: str) -> BrowsedDataset:
        """A dataset, NAME or NAME@VERSION.

        Raises:
            InvalidSetting, MissingArtifact, CorruptArtifact: as `find_dataset`.
        """
        ref = find_dataset(self.store, name)
        with self._lock:
            found = self._opened.pop(ref.uri, None) or BrowsedDataset(self.store, ref)
            self._opened[ref.uri] = found
            if len(self._opened) > _MOST_OPEN:
                self._opened.popitem(last=False)
        return found


def _embeddings_of(store: str, dataset: DatasetRef) -> EmbeddingsRef:
    """A table of the dataset's embeddings, of all of it rather than of a split."""
    found: list[EmbeddingsRef] = []
    root = storage.join(store, "embeddings")
    for version in storage.list_versions(root):
        try:
            table = find_embeddings(storage.join(root, version))
        except (CorruptArtifact, IncompatibleArtifact, MissingArtifact):
            continue  # it is being removed; `dml verify` tells of damage
        if table.items.fingerprint == dataset.fingerprint and table.parts is None:
            found.append(table)
    if not found:
        raise MissingArtifact(
            f"Suspected labels need embeddings of {dataset}; the store has none. Make them: dml embed MODEL "
            f"{dataset}."
        )
    return max(found, key=lambda table: (table.rows, table.fingerprint))


def small_picture(image: bytes, side: int) -> bytes:
    """An image file as WebP without its metadata, at most `side` pixels wide and high."""
    picture = Image.fromarray(np.asarray(decode(image, "RGB")))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=_QUALITY, method=2)
    return out.getvalue()


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON cannot hold, are missing."""
    return None if isinstance(value, float) and not np.isfinite(value) else value

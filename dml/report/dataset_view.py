"""A dataset as the sections of its report need it: each quantity is computed once, on first use."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dml import storage
from dml.config import DatasetReportConfig
from dml.data.dataset import read_images, read_rows
from dml.data.quarantine import QUARANTINE, read_quarantine
from dml.data.schema import TEST, TRAIN
from dml.data.sources.sample import Problem
from dml.data.thumbnails import Thumbnails, read_thumbnails
from dml.embedding.table import read_embeddings
from dml.errors import IncompatibleArtifact
from dml.evaluation.all_pairs import device_for
from dml.metrics.ranking import Items
from dml.progress import Ticker
from dml.refs import DatasetRef, EmbeddingsRef
from dml.report.findings import Neighbors, Suspect, label_suspects, nearest
from dml.report.gallery import Tile
from dml.report.near_duplicates import NearDuplicates, find_near_duplicates
from dml.reports import Between

_FEWEST_NEIGHBORS = 5


class DatasetView:
    """A dataset's rows, N of them, in the order of their positions."""

    def __init__(self, dataset: DatasetRef, config: DatasetReportConfig) -> None:
        self.dataset, self.config = dataset, config
        rows = read_rows(dataset)
        self.ids: list[str] = rows["id"].to_pylist()
        self.labels: NDArray[np.object_] = np.array(rows["label"].to_pylist(), dtype=object)
        self.splits: NDArray[np.object_] = np.array(rows["split"].to_pylist(), dtype=object)
        self.width: NDArray[np.int64] = rows["width"].to_numpy().astype(np.int64)
        self.height: NDArray[np.int64] = rows["height"].to_numpy().astype(np.int64)
        self.attributes: dict[str, list[Any]] = {name: rows[name].to_pylist() for name in dataset.attributes}
        self.names, self.codes = np.unique(self.labels, return_inverse=True)
        """(C,) labels, sorted, and (N,) their numbers."""

    @property
    def present_splits(self) -> list[str]:
        """Train first."""
        return [split for split in (TRAIN, TEST) if (self.splits == split).any()]

    def rows_of(self, split: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.splits == split)

    @cached_property
    def class_sizes(self) -> dict[str, list[tuple[str, int]]]:
        """Split to (label, images) of each of its classes, the largest first, of equal ones by label."""
        sizes = {}
        for split in self.present_splits:
            codes, counts = np.unique(self.codes[self.rows_of(split)], return_counts=True)
            pairs = zip(self.names[codes].tolist(), counts.tolist(), strict=True)
            sizes[split] = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
        return sizes

    @cached_property
    def problems(self) -> list[Problem]:
        return read_quarantine(storage.join(self.dataset.uri, QUARANTINE))

    @cached_property
    def thumbnails(self) -> Thumbnails:
        return read_thumbnails(self.dataset)

    @cached_property
    def near_duplicates(self) -> "dict[Between, FoundDuplicates]":
        """Test images in train first, then within each split that the dataset has."""
        splits = self.present_splits
        duplicates: dict[Between, FoundDuplicates] = {}
        if TRAIN in splits and TEST in splits:
            duplicates["test and train"] = self._duplicates(TEST, TRAIN)
        if TRAIN in splits:
            duplicates["train"] = self._duplicates(TRAIN, None)
        if TEST in splits:
            duplicates["test"] = self._duplicates(TEST, None)
        return duplicates

    def _duplicates(self, split: str, other: str | None) -> "FoundDuplicates":
        rows = self.rows_of(split)
        gallery = rows if other is None else self.rows_of(other)
        pixels = self.thumbnails.pixels
        pairs = find_near_duplicates(
            pixels[rows],
            None if other is None else pixels[gallery],
            max_distance=self.config.max_distance,
            min_similarity=self.config.min_similarity,
            part=f"within {split}" if other is None else f"of {split} in {other}",
        )
        return FoundDuplicates(pairs, rows, gallery)

    def tiles(self, rows: Sequence[int], texts: Sequence[str]) -> list[Tile]:
        """Pictures of some rows with what is written below each."""
        images = read_images(self.dataset, rows)
        return [Tile(image, text) for image, text in zip(images, texts, strict=True)]


class FoundDuplicates:
    """Near-duplicates in rows of the dataset."""

    def __init__(self, pairs: NearDuplicates, rows: NDArray[np.int64], gallery: NDArray[np.int64]) -> None:
        self.num_pairs, self.truncated = pairs.num_pairs, pairs.truncated
        with_duplicate = pairs.rows
        self.first: NDArray[np.int64] = rows[with_duplicate]
        """(F,) the images that have one, the most alike first."""
        self.second: NDArray[np.int64] = gallery[pairs.nearest[with_duplicate]]
        """(F,) the nearest of each."""
        self.distances, self.similarities = (
            pairs.distances[with_duplicate],
            pairs.similarities[with_duplicate],
        )

    def each_once(self) -> list[int]:
        """Which of the F pairs to show: of two images that are each other's nearest, one of both."""
        seen: set[frozenset[int]] = set()
        chosen = []
        for number, pair in enumerate(zip(self.first.tolist(), self.second.tolist(), strict=True)):
            if frozenset(pair) not in seen:
                seen.add(frozenset(pair))
                chosen.append(number)
        return chosen


class EmbeddedDataset:
    """Nearest neighbours and labels of the dataset, or a split, in an embeddings table.

    Args:
        view: of the dataset.
        embeddings: of all of it, or of a split.

    Raises:
        IncompatibleArtifact: the table is of another dataset.
    """

    def __init__(self, view: DatasetView, embeddings: EmbeddingsRef) -> None:
        if embeddings.items.fingerprint != view.dataset.fingerprint:
            raise IncompatibleArtifact(
                f"The embeddings must be of {view.dataset}; {embeddings.uri} has those of "
                f"{embeddings.items}. Embed {view.dataset}: dml embed MODEL {view.dataset}."
            )
        table = read_embeddings(embeddings)
        self._config = view.config
        self.vectors: NDArray[np.float32] = table.vectors
        """(M, D), unit length."""
        self.positions: NDArray[np.int64] = table.positions
        """(M,) rows of the dataset."""
        self.labels: NDArray[np.int64] = view.codes[table.positions]
        """(M,) numbers of `view.names`."""

    @cached_property
    def neighbors(self) -> Neighbors:
        """Their rows are rows of the table."""
        device = device_for(self.vectors.nbytes)
        labels = torch.from_numpy(self.labels).to(device)
        ids = torch.arange(len(labels), device=device)
        items = Items(torch.from_numpy(self.vectors).to(device), labels, ids)
        with Ticker("neighbours") as ticker:
            ticker.begin(f"of {len(labels):,} embeddings")
            return nearest(items, depth=max(self._config.agreeing, _FEWEST_NEIGHBORS))

    @cached_property
    def suspects(self) -> list[Suspect]:
        if len(self.labels) < 2:
            return []
        return label_suspects(self.neighbors, agreeing=self._config.agreeing)

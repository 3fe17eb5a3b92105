"""Metrics, nearest neighbours and images of a split in one embedding, for the sections of a report."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dml.config import ReportConfig
from dml.data.dataset import read_images, read_rows
from dml.embedding.table import read_embeddings
from dml.evaluation.all_pairs import device_for, query_values
from dml.evaluation.evaluate import split_rows
from dml.evaluation.query_gallery import query_gallery
from dml.metrics.retrieval import QueryMetrics
from dml.metrics.verification import RocCurve, roc_of_all_pairs
from dml.refs import EmbeddingsRef, require_dataset
from dml.report.findings import Neighbors, Suspect, label_suspects, nearest
from dml.report.gallery import GalleryRow, Tile


class EmbeddedSplit:
    """The data of a split for a report; results are computed once and only if a section needs them."""

    def __init__(self, embeddings: EmbeddingsRef, config: ReportConfig) -> None:
        self.embeddings, self.config = embeddings, config
        self.dataset = require_dataset(embeddings.items, "A report")
        self.positions, self._rows = split_rows(self.dataset, config.evaluation, config.split)
        self.vectors: NDArray[np.float32] = read_embeddings(embeddings, split=config.split).vectors
        self.labels = self._rows.labels
        columns = read_rows(self.dataset, split=config.split, columns=["id", "label"])
        self.ids: list[str] = columns["id"].to_pylist()
        self.names: dict[int, str] = dict(
            zip(self.labels.tolist(), columns["label"].to_pylist(), strict=True)
        )

    @cached_property
    def _on_device(self) -> torch.Tensor:
        return torch.from_numpy(self.vectors).to(device_for(self.vectors.nbytes))

    @cached_property
    def metrics(self) -> QueryMetrics:
        return query_values(self._on_device, self._rows, self.config.evaluation)

    @cached_property
    def neighbors(self) -> Neighbors:
        depth = max(self.config.answers, self.config.agreeing)
        return nearest(*query_gallery(self._on_device, self._rows, self.config.evaluation), depth=depth)

    @cached_property
    def map_at_r(self) -> dict[int, float]:
        """MAP@R of each query with a positive."""
        return dict(zip(self.metrics.rows.tolist(), self.metrics.values["map_at_r"].tolist(), strict=True))

    @cached_property
    def suspects(self) -> list[Suspect]:
        return label_suspects(self.neighbors, agreeing=self.config.agreeing)

    @cached_property
    def curve(self) -> RocCurve | None:
        """The ROC curve of all pairs; None if there are no genuine or no impostor pairs."""
        sizes = np.unique(self.labels, return_counts=True)[1]
        if len(sizes) < 2 or sizes.max() < 2:
            return None
        labels = torch.from_numpy(self.labels).to(self._on_device.device)
        rates = self.config.false_accept_rates or (0.1,)
        return roc_of_all_pairs(self._on_device, labels, false_accept_rates=rates)

    def row_of(self, query: int) -> int:
        return int(self.neighbors.rows[query])

    def name_of(self, query: int) -> str:
        return self.names[int(self.neighbors.labels[query])]

    def gallery_rows(self, queries: Sequence[int], *, answers: int) -> list[GalleryRow]:
        """Queries, numbered from 1, with their nearest answers."""
        ranks = {query: self._answers_of(query, answers) for query in queries}
        rows = [self.row_of(query) for query in queries]
        rows += [int(self.neighbors.answers[at]) for of_query in ranks.values() for at in of_query]
        images = dict(zip(rows, read_images(self.dataset, self.positions[rows].tolist()), strict=True))
        return [
            GalleryRow(
                Tile(images[self.row_of(query)], f"{number}: {self.name_of(query)}"),
                [self._answer(images, query_rank) for query_rank in ranks[query]],
            )
            for number, query in enumerate(queries, start=1)
        ]

    def _answers_of(self, query: int, count: int) -> list[tuple[int, int]]:
        """(query, rank from 0) of the nearest answers; fewer than `count` if the gallery is small."""
        present = self.neighbors.similarities[query, :count] > -torch.inf
        return [(query, rank) for rank in range(int(present.sum()))]

    def _answer(self, images: Mapping[int, bytes], query_rank: tuple[int, int]) -> Tile:
        near = self.neighbors
        return Tile(
            images[int(near.answers[query_rank])],
            self.names[int(near.answer_labels[query_rank])],
            similarity=float(near.similarities[query_rank]),
            right=bool(near.right[query_rank]),
        )

    def row(self, query: int) -> dict[str, Any]:
        """The table row of a query."""
        near = self.neighbors
        wrong = (~near.right[query] & (near.similarities[query] > -torch.inf)).nonzero()[:, 0].tolist()
        line: dict[str, Any] = {"id": self.ids[self.row_of(query)], "label": self.name_of(query)}
        if query in self.map_at_r:
            line["MAP@R"] = self.map_at_r[query]
        if wrong:
            line["first wrong answer"] = self.names[int(near.answer_labels[query, wrong[0]])]
            line["its rank"] = wrong[0] + 1
            line["its similarity"] = float(near.similarities[query, wrong[0]])
        return line

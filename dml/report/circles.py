"""Page that shows the effect of losses: the same images in two dimensions, one circle per loss."""

from collections.abc import Mapping

import numpy as np
import torch

from dml import storage
from dml.data.dataset import read_rows
from dml.embedding.table import read_embeddings
from dml.errors import IncompatibleArtifact
from dml.metrics.retrieval import retrieval_metrics
from dml.refs import EmbeddingsRef, ReportRef, require_dataset
from dml.report.circle_histogram import CircleHistogram, draw_circle_histograms
from dml.report.page import Page, Picture, Section, publish_page

_CODE_VERSION = 2
_TEXT = (
    "Embeddings have length one, so in two dimensions they are points on a circle. This also applies to "
    "softmax, which textbooks draw without normalization, as rays in the plane. Bars outside the circle: "
    "square root of the number of images in that direction, by class. Lines inside: mean direction of "
    "each class; the length shows how concentrated the class is."
)


def draw_circles(store: str, embeddings: Mapping[str, EmbeddingsRef], trained_on: str) -> ReportRef:
    """Draw embeddings of two dimensions side by side, and publish the picture and its page.

    Args:
        store: the store's URI; the report is in `reports/` there.
        embeddings: by what is written above each circle, such as the loss; all rows are drawn.
        trained_on: the dataset the encoders learnt from, as NAME@VERSION, for the text.

    Returns:
        The report, whose only picture is `circles.png`; the same one for the same tables.

    Raises:
        IncompatibleArtifact: an embedding that has not two dimensions.
    """
    for name, table in embeddings.items():
        if table.dim != 2:
            raise IncompatibleArtifact(
                f"A circle needs an embedding of 2 dimensions; that of {name!r} has {table.dim}. Train it "
                "with encoder.dim=2, or look at it with dml report."
            )
    parents = [(name, table.fingerprint) for name, table in embeddings.items()]
    fingerprint = storage.digest_of("circles", _CODE_VERSION, parents, trained_on)
    return publish_page(store, fingerprint, lambda: _page(embeddings, trained_on))


def _page(embeddings: Mapping[str, EmbeddingsRef], trained_on: str) -> Page:
    shown = require_dataset(next(iter(embeddings.values())).items, "A picture of images on circles")
    where = f"{shown.rows:,} images of {shown}, encoders trained on {trained_on}"
    histograms = {name: _rose(name, table) for name, table in embeddings.items()}
    png = draw_circle_histograms([histogram for histogram, _ in histograms.values()])
    picture = Picture("circles", png, f"{', '.join(embeddings)}: {where}")
    rows = [{"loss": name, **metrics} for name, (_, metrics) in histograms.items()]
    sections = [Section("The circles", _TEXT, [picture], rows)]
    return Page("What does a loss do to an embedding?", where, sections, shows=[shown])


def _rose(name: str, table: EmbeddingsRef) -> tuple[CircleHistogram, dict[str, float]]:
    """One circle and its metrics."""
    vectors = read_embeddings(table).vectors
    columns = read_rows(table.items, split=table.split, columns=["class_id", "label"])
    labels = columns["class_id"].to_numpy().astype(np.int64)
    names = dict(zip(labels.tolist(), columns["label"].to_pylist(), strict=True))
    metrics = retrieval_metrics(torch.from_numpy(vectors), torch.from_numpy(labels)).as_dict()
    title = f"{name}\nrecall@1 {metrics['recall_at_1']:.2f}, MAP@R {metrics['map_at_r']:.2f}"
    return CircleHistogram(title, vectors, labels, names), metrics

"""Page that shows the effect of losses: the same images in two dimensions, one circle per loss."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from dml import storage
from dml.data.dataset import read_images, read_rows
from dml.embedding.table import read_embeddings
from dml.errors import IncompatibleArtifact
from dml.metrics.retrieval import retrieval_metrics
from dml.models.package import load_package
from dml.refs import EmbeddingsRef, ReportRef, require_dataset, require_package
from dml.report.circle_histogram import CircleHistogram, draw_circle_histograms
from dml.report.page import Page, Picture, Section, publish_page
from dml.report.plane import PlanePoints, draw_planes

_CODE_VERSION = 3
_MOST_POINTS = 2000  # in one plane; more hide each other
_TEXT = (
    "Embeddings have length one, so in two dimensions they are points on a circle. This also applies to "
    "softmax, which textbooks draw without normalization, as rays in the plane. Bars outside the circle: "
    "square root of the number of images in that direction, by class. Lines inside: mean direction of "
    "each class; the length shows how concentrated the class is."
)
_PLANE_TEXT = (
    "The losses saw the lengths of embeddings. Above: embeddings as points of the plane, with their lengths; "
    "every plane has its own scale. Below: the directions of the same networks on a circle; this is what an "
    "index, a search and an evaluation use. Softmax alone learns from a length: longer is a surer "
    "answer, so classes are rays. The other losses divide by it. Bars outside the circle: square root of the "
    "number of images in that direction, by class. Lines inside: mean direction of each class; the length "
    "shows how concentrated the class is."
)


def draw_circles(
    store: str, embeddings: Mapping[str, EmbeddingsRef], trained_on: str, *, plane: bool = False
) -> ReportRef:
    """Draw embeddings of two dimensions side by side, and publish the picture and its page.

    Args:
        store: the store's URI; the report is in `reports/` there.
        embeddings: by what is written above each circle, such as the loss; all rows are drawn.
        trained_on: the dataset the encoders learnt from, as NAME@VERSION, for the text.
        plane: draw the embeddings also with their lengths, of at most 2,000 images, evenly spaced.

    Returns:
        The report, whose only picture is `circles.png`, or `plane.png`; the same one for the same tables.

    Raises:
        IncompatibleArtifact: an embedding that has not two dimensions; for a plane also one whose model is
            not here, or was trained without lengths.
    """
    for name, table in embeddings.items():
        if table.dim != 2:
            raise IncompatibleArtifact(
                f"A circle needs an embedding of 2 dimensions; that of {name!r} has {table.dim}. Train it "
                "with encoder.dim=2, or look at it with dml report."
            )
    parents = [(name, table.fingerprint) for name, table in embeddings.items()]
    fingerprint = storage.digest_of("circles", _CODE_VERSION, parents, trained_on, plane)
    return publish_page(store, fingerprint, lambda: _page(embeddings, trained_on, plane))


def _page(embeddings: Mapping[str, EmbeddingsRef], trained_on: str, plane: bool) -> Page:
    shown = require_dataset(next(iter(embeddings.values())).items, "A picture of images on circles")
    where = f"{shown.rows:,} images of {shown}, encoders trained on {trained_on}"
    histograms = {name: _rose(name, table) for name, table in embeddings.items()}
    rows = [{"loss": name, **metrics} for name, (_, metrics) in histograms.items()]
    caption = f"{', '.join(embeddings)}: {where}"
    if plane:
        points = [_points(name, table, histograms[name][0]) for name, table in embeddings.items()]
        picture = Picture("plane", draw_planes(points), caption)
        rows = [{**row, **_lengths(each.points)} for row, each in zip(rows, points, strict=True)]
        sections = [Section("The plane and the circles", _PLANE_TEXT, [picture], rows)]
    else:
        png = draw_circle_histograms([histogram for histogram, _ in histograms.values()])
        sections = [Section("The circles", _TEXT, [Picture("circles", png, caption)], rows)]
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


def _points(name: str, table: EmbeddingsRef, circle: CircleHistogram) -> PlanePoints:
    """The images of a circle embedded again, with lengths."""
    package = load_package(require_package(table.embedder, "A plane").uri)
    if package.encoder.config.unit_length:
        raise IncompatibleArtifact(
            f"A plane needs an encoder trained with lengths; that of {name!r} was trained at unit length. "
            "Train it with encoder.unit_length=false."
        )
    dataset = require_dataset(table.items, "A plane")
    num_rows = len(circle.labels)
    chosen = np.unique(np.linspace(0, num_rows - 1, min(num_rows, _MOST_POINTS)).astype(np.int64))
    positions = read_embeddings(table).positions[chosen]
    points = package.embed(read_images(dataset, positions.tolist()), unit_length=False)
    return PlanePoints(points, circle.labels[chosen], circle)


def _lengths(points: NDArray[np.float32]) -> dict[str, float]:
    low, median, high = np.quantile(np.linalg.norm(points, axis=1), [0.05, 0.5, 0.95]).tolist()
    return {"5% length": low, "median length": median, "95% length": high}

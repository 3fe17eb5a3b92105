"""Pictures of queries and their search results."""

from collections.abc import Sequence

import numpy as np

from dml import storage
from dml.data.dataset import read_images, read_rows
from dml.models.package import load_package
from dml.refs import IndexRef, require_dataset, require_package
from dml.report.gallery import GalleryRow, Tile, draw_gallery
from dml.retrieval.answer import Answer
from dml.retrieval.gallery import Gallery
from dml.retrieval.shards import open_index
from dml.serving.query_result import QueryResult

_SAMPLE_QUERIES, _SAMPLE_ANSWERS = 8, 8


def draw(result: QueryResult, query: bytes, gallery: Gallery) -> bytes:
    """A PNG with the query and its answers in one row.

    Raises:
        MissingArtifact: an answer was enrolled as a vector.
    """
    dataset = require_dataset(result.index.embeddings.items, "A picture of answers")
    of_dataset = [answer.position for answer in result.answers if answer.position >= 0]
    read = iter(read_images(dataset, of_dataset))
    images = [next(read) if answer.position >= 0 else gallery.picture(answer.id) for answer in result.answers]
    return draw_gallery([_row(Tile(query, "query"), result.answers, images, label=None)])


def draw_sample(store: str, index: IndexRef) -> tuple[str, bytes]:
    """Draw queries spread evenly over the test split, with their answers but the query itself; (URI, PNG)."""
    dataset = require_dataset(index.embeddings.items, "A picture of queries and answers")
    rows = read_rows(dataset, split="test", columns=["id", "label"])
    chosen = np.linspace(0, len(rows) - 1, _SAMPLE_QUERIES).astype(int)
    queries = rows.take(np.unique(chosen)).to_pylist()
    images = read_images(dataset, [query["position"] for query in queries])
    package = load_package(require_package(index.embeddings.embedder, "Embedding the queries").uri)
    result = open_index(index).search(
        package.embed(images),
        _SAMPLE_ANSWERS,
        where="split = 'test'",
        embedder=package.ref.fingerprint,
        exclude_ids=[query["id"] for query in queries],
    )
    gallery = []
    for query, image, answers in zip(queries, images, result.answers, strict=True):
        pictures = read_images(dataset, [answer.position for answer in answers])
        gallery.append(_row(Tile(image, query["label"]), answers, pictures, label=query["label"]))
    png = draw_gallery(gallery)
    uri = storage.join(store, "galleries", f"{index.name}-{index.version}.png")
    storage.write_bytes(uri, png)
    return uri, png


def _row(query: Tile, answers: Sequence[Answer], images: Sequence[bytes], label: str | None) -> GalleryRow:
    tiles = [
        Tile(
            image,
            answer.label or "",
            similarity=answer.similarity,
            right=None if label is None else answer.label == label,
        )
        for answer, image in zip(answers, images, strict=True)
    ]
    return GalleryRow(query, tiles)

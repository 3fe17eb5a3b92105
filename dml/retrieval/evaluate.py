"""Judge an embeddings table on a split of its dataset, and raw pixels as the floor to compare with."""

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from dml.config import EvaluationConfig, PreprocessingConfig
from dml.data.dataset import open_mapped, read_rows
from dml.errors import InvalidData
from dml.metrics.clustering import normalised_mutual_information, pairwise_f1
from dml.metrics.retrieval import retrieval_metrics
from dml.preprocessing import decode, resize_and_crop
from dml.refs import DatasetRef, EmbeddingsRef
from dml.retrieval.table import read_embeddings

_KMEANS_ITERATIONS = 20
_RAW_SIDE = 32


def evaluate(embeddings: EmbeddingsRef, config: EvaluationConfig, *, split: str = "test") -> dict[str, float]:
    """Recall@K, R-precision, MAP@R, NMI and pairwise F1 of one split, every row a query among the others.

    Raises:
        InvalidData: the split has no rows.
    """
    positions, labels = _split_rows(embeddings.dataset, split)
    return _judge(read_embeddings(embeddings).vectors[positions], labels, config)


def raw_pixel_baseline(
    dataset: DatasetRef, preprocessing: PreprocessingConfig, config: EvaluationConfig, *, split: str = "test"
) -> dict[str, float]:
    """The same metrics on the images' own pixels, at most 32 x 32, centred and of unit length."""
    positions, labels = _split_rows(dataset, split)
    mapped = open_mapped(dataset)
    side = min(preprocessing.crop, _RAW_SIDE)
    pixels = np.empty((len(positions), side * side * preprocessing.channels), dtype=np.float32)
    for row, position in enumerate(positions):
        image = resize_and_crop(decode(mapped.image(int(position)), preprocessing.color), preprocessing)
        pixels[row] = np.asarray(image.resize((side, side)), dtype=np.float32).ravel()
    pixels -= pixels.mean(1, keepdims=True)
    pixels /= np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)
    return _judge(pixels, labels, config)


def _split_rows(dataset: DatasetRef, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions and class ids of a split's rows."""
    rows = read_rows(dataset, split=split, columns=["class_index"])
    if not len(rows):
        raise InvalidData(
            f"An evaluation needs rows in the split {split!r}; {dataset.name}@{dataset.version} has the "
            f"splits {sorted(dataset.splits)}. Ingest it with another --split."
        )
    return rows["position"].to_numpy(), rows["class_index"].to_numpy().astype(np.int64)


def _judge(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], config: EvaluationConfig
) -> dict[str, float]:
    classes = torch.from_numpy(labels)
    metrics = retrieval_metrics(torch.from_numpy(vectors), classes, recall_at=config.recall_at).as_dict()
    if config.nmi:
        clusters = torch.from_numpy(_clusters(vectors, len(np.unique(labels))))
        metrics["nmi"] = normalised_mutual_information(classes, clusters)
        metrics["pairwise_f1"] = pairwise_f1(classes, clusters)
    return metrics


def _clusters(vectors: NDArray[np.float32], num_clusters: int) -> NDArray[np.int64]:
    """k-means of the field: as many clusters as classes, 20 iterations, on all points."""
    vectors = np.ascontiguousarray(vectors)
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        num_clusters,
        niter=_KMEANS_ITERATIONS,
        seed=1,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    kmeans.train(vectors)
    _, clusters = kmeans.index.search(vectors, 1)
    found: NDArray[np.int64] = clusters[:, 0]
    return found

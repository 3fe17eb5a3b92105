"""k-means clustering of embeddings with Faiss, for NMI and F1."""

import faiss
import numpy as np
from numpy.typing import NDArray

ITERATIONS = 20


def k_means(vectors: NDArray[np.float32], num_clusters: int, *, seed: int = 1) -> NDArray[np.int64]:
    """Faiss k-means on all points; the default of Faiss would subsample to 256 points per cluster.

    Args:
        vectors: (N, D).
        num_clusters: number of clusters, usually the number of classes.
        seed: of the initial centroids.

    Returns:
        (N,) cluster of each vector.
    """
    vectors = np.ascontiguousarray(vectors)
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        num_clusters,
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    kmeans.train(vectors)
    _, clusters = kmeans.index.search(vectors, 1)
    nearest: NDArray[np.int64] = clusters[:, 0]
    return nearest

"""k-means of embeddings, as the field's evaluations run it."""

import faiss
import numpy as np
from numpy.typing import NDArray

ITERATIONS = 20


def k_means(vectors: NDArray[np.float32], num_clusters: int, *, seed: int = 1) -> NDArray[np.int64]:
    """Faiss' k-means on all points, none left out as its own default does beyond 256 per cluster.

    Args:
        vectors: (N, D).
        num_clusters: as many as there are classes.
        seed: of the points it starts from.

    Returns:
        (N,) the cluster of each.
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

"""Re-rankers: a query and its first answers in, a better query or distances out, by who is near whom."""

import numpy as np
from numpy.typing import NDArray

QUERY_EXPANSION, K_RECIPROCAL = NAMES = ("query-expansion", "k-reciprocal")
CANDIDATES = 100
NUM_EXPANDING, ALPHA = 10, 3.0
K1, K2, LAMBDA = 20, 6, 0.3
"""As in the papers, for Market-1501 and for buildings."""

Vector = NDArray[np.float32]


def expanded(query: Vector, vectors: NDArray[np.float32], *, alpha: float = ALPHA) -> Vector:
    """A query and its first answers as one query.

        q + sum of max(similarity, 0)^alpha * x over the answers x, at unit length

    Args:
        query: (D,) unit length.
        vectors: (n, D) of its first answers, unit length.
        alpha: 0 is the plain mean; the larger, the less do distant answers count.

    Source: Radenović, Tolias and Chum 2019, arXiv:1711.02512, sec. 5.2 (alpha-weighted query expansion).
    """
    weights = np.maximum(vectors @ query, 0) ** alpha
    total = query + weights @ vectors
    unit: Vector = (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)
    return unit


def k_reciprocal_distances(
    query: Vector, vectors: NDArray[np.float32], *, k1: int = K1, k2: int = K2, weight: float = LAMBDA
) -> NDArray[np.float64]:
    """Distances of a query and its candidates by the neighbours that they share.

    Two are k-reciprocal neighbours if each is among the k nearest of the other. The set of a vector's
    k1-reciprocal neighbours takes in the (k1 / 2)-reciprocal set of each member, if more than two thirds of
    that are in it. As a vector each set holds exp(-distance), with a sum of 1, and is the mean of those of
    the k2 nearest. The result is

        (1 - weight) * Jaccard distance of the two sets + weight * distance

    Neighbours are sought among the query and the candidates only.

    Args:
        query: (D,) unit length.
        vectors: (n, D) candidates, unit length.
        k1: neighbours of a set.
        k2: neighbours of which the sets' mean is taken.
        weight: of the distance itself, squared L2 as a share of the largest, [0, 1].

    Returns:
        (n,) smaller is better.

    Source: Zhong et al. 2017, arXiv:1701.08398, sec. 3.
    """
    every = np.vstack([query, vectors]).astype(np.float64)
    distances = np.maximum(2 - 2 * every @ every.T, 0)
    distances /= np.maximum(distances.max(axis=1, keepdims=True), 1e-12)
    np.fill_diagonal(distances, -1)  # among copies each is its own nearest
    order = np.argsort(distances, axis=1, kind="stable")
    np.fill_diagonal(distances, 0)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(every))[None, :], axis=1)
    sets, halves = _reciprocal(ranks, k1), _reciprocal(ranks, round(k1 / 2))
    shared = sets.astype(np.float32) @ halves.T.astype(np.float32)
    taken_in = sets & (shared > 2 / 3 * halves.sum(axis=1))
    sets = sets | (taken_in.astype(np.float32) @ halves.astype(np.float32) > 0)
    held = np.where(sets, np.exp(-distances), 0)
    held /= held.sum(axis=1, keepdims=True)
    nearest = ranks < k2
    held = nearest.astype(np.float64) @ held / nearest.sum(axis=1, keepdims=True)
    common = np.minimum(held[0], held[1:]).sum(axis=1)
    jaccard = 1 - common / (2 - common)
    result: NDArray[np.float64] = (1 - weight) * jaccard + weight * distances[0, 1:]
    return result


def _reciprocal(ranks: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """(n, n) whether each is among the k nearest of the other; itself is, too."""
    near: NDArray[np.bool_] = ranks <= k
    return near & near.T

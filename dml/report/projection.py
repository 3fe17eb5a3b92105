"""An embedding in two dimensions: as it is where it has two, else by t-SNE."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PERPLEXITY = 30.0
_LEAST_POINTS = 4  # below, t-SNE has no neighbourhood to keep


@dataclass(frozen=True)
class Map:
    """Positions of some items in two dimensions."""

    rows: NDArray[np.int64]
    """(M,) which of the items, ascending."""
    points: NDArray[np.float64]
    """(M, 2)."""
    how: str
    """The method that made the points, for the caption."""


def map_of(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], *, shown: NDArray[np.int64], most: int
) -> Map:
    """Place at most `most` items on a plane; equal inputs give equal points.

    Args:
        vectors: (N, D), unit length.
        labels: (N,) class ids.
        shown: classes that must be seen; half of the points are reserved for their items.
        most: items to place, since t-SNE's time is what this costs.

    Source: van der Maaten, Hinton 2008, "Visualizing data using t-SNE", by scikit-learn, started from the
    principal components, which keeps global structure (Kobak, Linderman 2021, Nature Biotech. 39).
    """
    rows = _chosen(labels, shown, most)
    chosen = vectors[rows]
    if vectors.shape[1] == 2:
        return Map(rows, chosen.astype(np.float64), "the embedding itself, which has two dimensions")
    if len(rows) < _LEAST_POINTS:
        return Map(rows, _principal(chosen), "its two principal components")
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
    with threadpool_limits(1):  # sums of several threads come in any order
        points = TSNE(
            perplexity=perplexity, init=_principal(chosen) * 1e-2, learning_rate="auto", random_state=0
        ).fit_transform(chosen)
    return Map(rows, points.astype(np.float64), f"t-SNE, perplexity {perplexity:.0f}")


def _chosen(labels: NDArray[np.int64], shown: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Rows spread evenly over the classes in order, those of the shown classes first."""
    if len(labels) <= most:
        return np.arange(len(labels))
    by_class = labels.argsort(kind="stable")
    of_shown = np.isin(labels[by_class], shown)
    first = _spread(by_class[of_shown], most // 2)
    return np.sort(np.concatenate([first, _spread(by_class[~of_shown], most - len(first))]))


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of them at equal distances, or all."""
    if len(rows) <= count:
        return rows
    chosen: NDArray[np.int64] = rows[np.arange(count) * len(rows) // count]
    return chosen


def _principal(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """(M, 2) coordinates along the directions of largest variance, the first with deviation 1.

    A direction's sign, which the decomposition leaves open, makes its largest coordinate positive.
    """
    centered = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    points: NDArray[np.float64] = np.zeros((len(vectors), 2))
    if len(vectors):
        directions = np.linalg.svd(centered, full_matrices=False)[2][:2]
        scores = centered @ directions.T
        largest = np.abs(scores).argmax(0)
        points[:, : scores.shape[1]] = scores * np.sign(scores[largest, np.arange(scores.shape[1])])
    points /= max(points[:, 0].std(), 1e-12)
    return points

"""How well clusters agree with classes: exact counts, float64."""

from typing import Literal

import torch
from torch import Tensor


def normalised_mutual_information(
    labels: Tensor, clusters: Tensor, *, average: Literal["arithmetic", "geometric"] = "arithmetic"
) -> float:
    """Mutual information of two labelings over the mean of their entropies, in [0, 1].

    Args:
        labels: (N,) int64.
        clusters: (N,) int64.
        average: of the two entropies: "arithmetic" (scikit-learn since 0.22, and who calls it) or "geometric"
            (Strehl and Ghosh 2002, as the field's older papers).

    Returns:
        1 where both say the same or each has one value, 0 where one tells nothing of the other.

    Raises:
        ValueError: no items, different lengths, or another average.
    """
    if average not in ("arithmetic", "geometric"):
        raise ValueError(f"average must be arithmetic or geometric; got {average!r}.")
    classes, groups, joint = _counts(labels, clusters)
    entropy, cluster_entropy = _entropy(classes), _entropy(groups)
    if entropy == cluster_entropy == 0:
        return 1.0
    mean = (entropy + cluster_entropy) / 2 if average == "arithmetic" else (entropy * cluster_entropy) ** 0.5
    information = entropy + cluster_entropy - _entropy(joint)
    return min(max(information / mean, 0.0), 1.0) if mean > 0 else 0.0


def pairwise_f1(labels: Tensor, clusters: Tensor) -> float:
    """Harmonic mean of precision and recall over all pairs of items: is a pair of one cluster of one class?

    Args:
        labels: (N,) int64.
        clusters: (N,) int64.

    Returns:
        [0, 1]; 1 where neither labeling has a pair.

    Raises:
        ValueError: no items, or different lengths.

    Source: Manning et al. 2008, Introduction to Information Retrieval, sec. 16.3.
    """
    classes, groups, joint = (_num_pairs(sizes) for sizes in _counts(labels, clusters))
    return 2 * joint / (classes + groups) if classes + groups else 1.0


def _counts(labels: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes of the classes, of the clusters, and of their intersections that are not empty."""
    if len(labels) != len(clusters) or not len(labels):
        raise ValueError(
            f"labels and clusters must be equally long, one or more; got {len(labels)} and {len(clusters)}."
        )
    _, classes, class_sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    _, groups, group_sizes = torch.unique(clusters, return_inverse=True, return_counts=True)
    _, joint_sizes = torch.unique(classes * len(group_sizes) + groups, return_counts=True)
    return class_sizes, group_sizes, joint_sizes


def _entropy(sizes: Tensor) -> float:
    shares = sizes.double() / sizes.sum()
    return float(-(shares * shares.log()).sum())


def _num_pairs(sizes: Tensor) -> int:
    return int((sizes * (sizes - 1)).sum()) // 2

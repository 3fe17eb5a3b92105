"""Clustering metrics against class labels: NMI, AMI and pairwise F1, from exact counts in float64."""

from typing import Literal

import torch
from torch import Tensor

from dml.metrics.arguments import (
    check_choice,
    check_one_device,
    check_same_length,
    check_vector,
    checked_count,
)

MOST_AMI_TERMS = 100_000_000
"""Maximum number of terms of the expected mutual information; about 10 seconds on one core."""
TERMS_AT_A_TIME = 1 << 20
_ROUNDING = 1e-12


def normalized_mutual_information(
    labels: Tensor, clusters: Tensor, *, average: Literal["arithmetic", "geometric"] = "arithmetic"
) -> float:
    """Mutual information of two labelings over the mean of their entropies, in [0, 1].

    Args:
        labels: (N,) int64.
        clusters: (N,) int64.
        average: mean of the two entropies: "arithmetic" (scikit-learn since 0.22 and its users) or
            "geometric" (Strehl and Ghosh 2002, as the field's older papers).

    Returns:
        1 where both say the same or each has one value, 0 where they are independent.

    Raises:
        ValueError: no items, different lengths, what are not whole numbers (N,), or another average.
    """
    check_choice("average", average, ("arithmetic", "geometric"))
    classes, groups, joint = _counts(labels, clusters)
    entropy, cluster_entropy = _entropy(classes), _entropy(groups)
    if entropy == cluster_entropy == 0:
        return 1.0
    mean = (entropy + cluster_entropy) / 2 if average == "arithmetic" else (entropy * cluster_entropy) ** 0.5
    information = entropy + cluster_entropy - _entropy(joint)
    return min(max(information / mean, 0.0), 1.0) if mean > 0 else 0.0


def adjusted_mutual_information(
    labels: Tensor,
    clusters: Tensor,
    *,
    most_terms: int = MOST_AMI_TERMS,
    terms_at_a_time: int = TERMS_AT_A_TIME,
) -> float:
    """Mutual information adjusted for chance, divided by the arithmetic mean of entropies, also adjusted.

    The expected information depends on two sizes alone, so it is summed over pairs of *different* sizes: the
    11,316 classes of SOP's test set have 11 sizes, not 11,316 x 11,316 pairs.

    Args:
        labels: (N,) int64.
        clusters: (N,) int64.
        most_terms: maximum number of terms of the expected information.
        terms_at_a_time: terms in memory.

    Returns:
        At most 1, there where both say the same; about 0 for clusters drawn at random, also below.

    Raises:
        ValueError: no items, different lengths, what are not whole numbers (N,), or sizes so many and so
            large that the sum has more than `most_terms` terms.

    Source: Vinh, Epps and Bailey 2010, JMLR 11, eq. 24a and AMI_sum.
    """
    classes, groups, joint = _counts(labels, clusters)
    if len(classes) == len(groups) == len(joint):
        return 1.0
    mean = (_entropy(classes) + _entropy(groups)) / 2
    expected = expected_information(
        classes,
        groups,
        most_terms=checked_count("most_terms", most_terms),
        terms_at_a_time=checked_count("terms_at_a_time", terms_at_a_time),
    )
    information = _entropy(classes) + _entropy(groups) - _entropy(joint)
    return (information - expected) / (mean - expected) if mean - expected > _ROUNDING else 0.0


def expected_information(
    classes: Tensor,
    groups: Tensor,
    *,
    most_terms: int = MOST_AMI_TERMS,
    terms_at_a_time: int = TERMS_AT_A_TIME,
) -> float:
    """Mean of the mutual information over all assignments of items to clusters of these sizes.

    Args:
        classes: (C,) int64 sizes of the classes.
        groups: (G,) int64 sizes of the clusters.
        most_terms: maximum number of terms.
        terms_at_a_time: terms in memory.

    Raises:
        ValueError: the sum has more terms.
    """
    total = int(classes.sum())
    class_sizes, class_counts = torch.unique(classes, return_counts=True)
    sizes, counts = torch.unique(groups, return_counts=True)
    most = int(sizes.max())
    num_terms = int(class_sizes.clamp(max=most).sum()) * len(sizes)
    if num_terms > most_terms:
        raise ValueError(
            f"The expected information of these class and cluster sizes must take at most {most_terms:,} "
            f"terms; got {num_terms:,}. Use the normalised mutual information, or sample items."
        )
    expected = 0.0
    for size, times in zip(class_sizes.tolist(), class_counts.tolist(), strict=True):
        shared = torch.arange(1, min(size, most) + 1, dtype=torch.float64, device=sizes.device)[None, :]
        together = max(terms_at_a_time // min(size, most), 1)
        for start in range(0, len(sizes), together):
            other = sizes[start : start + together].double()[:, None]
            many = counts[start : start + len(other)].double()
            terms = _information_of(shared, size, other, total)
            expected += times * float((terms.sum(1) * many).sum())
    return expected


def _information_of(shared: Tensor, size: int, other: Tensor, total: int) -> Tensor:
    """(B, S) float64: terms of the expected information, overlap information times probability.

    The probability is hypergeometric: `shared` items of a class are in a cluster of `other` items.

    Args:
        shared: (1, S) float64, sizes of the overlap.
        size: of the class.
        other: (B, 1) float64, sizes of clusters.
        total: items in all.
    """
    whole, of_class = torch.tensor(total, dtype=torch.float64), torch.tensor(float(size), dtype=torch.float64)
    log_share = (
        _log_factorial(of_class)
        + _log_factorial(other)
        + _log_factorial(whole - of_class)
        + _log_factorial(whole - other)
        - _log_factorial(whole)
        - _log_factorial(shared)
        - _log_factorial(of_class - shared)
        - _log_factorial(other - shared)
        - _log_factorial(whole - of_class - other + shared)
    )
    terms = shared / total * (total * shared / (size * other)).log() * log_share.exp()
    is_possible = (shared <= other) & (shared >= size + other - total)
    return terms.where(is_possible, terms.new_zeros(()))


def _log_factorial(values: Tensor) -> Tensor:
    return torch.lgamma(values.clamp_min(0) + 1)


def pairwise_f1(labels: Tensor, clusters: Tensor) -> float:
    """F1 over all pairs of items: predicted positive if in the same cluster, positive if in the same class.

    Args:
        labels: (N,) int64.
        clusters: (N,) int64.

    Returns:
        [0, 1]; 1 where neither labeling has a pair.

    Raises:
        ValueError: no items, different lengths, or what are not whole numbers (N,).

    Source: Manning et al. 2008, Introduction to Information Retrieval, sec. 16.3.
    """
    classes, groups, joint = (_num_pairs(sizes) for sizes in _counts(labels, clusters))
    return 2 * joint / (classes + groups) if classes + groups else 1.0


def _counts(labels: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes of the classes, of the clusters, and of their non-empty intersections."""
    check_vector("labels", labels, "int64")
    check_vector("clusters", clusters, "int64")
    check_same_length(labels=labels, clusters=clusters)
    check_one_device(labels=labels, clusters=clusters)
    if not len(labels):
        raise ValueError("labels and clusters must have at least one item; got none.")
    _, classes, class_sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    _, groups, group_sizes = torch.unique(clusters, return_inverse=True, return_counts=True)
    _, joint_sizes = torch.unique(classes * len(group_sizes) + groups, return_counts=True)
    return class_sizes, group_sizes, joint_sizes


def _entropy(sizes: Tensor) -> float:
    shares = sizes.double() / sizes.sum()
    return float(-(shares * shares.log()).sum())


def _num_pairs(sizes: Tensor) -> int:
    return int((sizes * (sizes - 1)).sum()) // 2

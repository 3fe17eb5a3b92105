"""How well clusters agree with classes."""

import torch
from torch import Tensor


def normalised_mutual_information(labels: Tensor, clusters: Tensor, *, average: str = "arithmetic") -> float:
    """Mutual information of two labelings over the mean of their entropies, in [0, 1].

    Args:
        labels: (N,) int64.
        clusters: (N,) int64.
        average: of the two entropies: "arithmetic" (scikit-learn since 0.22, and who calls it) or "geometric"
            (Manning et al. 2008, as the field's older papers).

    Returns:
        1 where both say the same or each has one value, 0 where one tells nothing of the other.

    Raises:
        ValueError: different lengths, or another average.
    """
    if len(labels) != len(clusters):
        raise ValueError(f"labels and clusters must be equally long; got {len(labels)} and {len(clusters)}.")
    if average not in ("arithmetic", "geometric"):
        raise ValueError(f"average must be arithmetic or geometric; got {average!r}.")
    _, classes, class_sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    _, groups, group_sizes = torch.unique(clusters, return_inverse=True, return_counts=True)
    joint, joint_sizes = torch.unique(torch.stack([classes, groups]), dim=1, return_counts=True)
    total = float(len(labels))
    expected = class_sizes[joint[0]].double() * group_sizes[joint[1]].double() / total
    information = float((joint_sizes / total * (joint_sizes / expected).log()).sum())
    entropies = [_entropy(sizes) for sizes in (class_sizes, group_sizes)]
    if max(entropies) == 0:
        return 1.0
    mean = sum(entropies) / 2 if average == "arithmetic" else (entropies[0] * entropies[1]) ** 0.5
    return max(information / mean, 0.0) if mean > 0 else 0.0


def _entropy(sizes: Tensor) -> float:
    shares = sizes.double() / sizes.sum()
    return float(-(shares * shares.log()).sum())

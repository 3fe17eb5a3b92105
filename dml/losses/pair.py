"""Losses of pairs and triplets, computed on the similarity matrix; no list of tuples is ever made."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.losses.references import References
from dml.similarity import cosine_similarities, distances, squared_distances

Mining = Literal["all", "batch-hard", "semi-hard"]
_ABSENT = 1e30
"""Stands for a pair that is not there: finite, so that no gradient becomes infinity times zero."""


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    squared: bool = True,
) -> Tensor:
    """Pull positives within one distance, push negatives beyond another; each side the mean of its active pairs.

    Args:
        embeddings: (b, D) float, unit length: this worker's anchors.
        labels: (b,) int64 class ids.
        references: the global batch; None: the anchors themselves.
        positive_margin: Euclidean distance within which positives rest.
        negative_margin: Euclidean distance beyond which negatives rest, (0, 2].
        squared: hinges squared, as the paper; False: as pytorch-metric-learning.

    Returns:
        Scalar. 0 with zero gradient when no pair is active. Memory O(b W b).

    Source: Hadsell, Chopra, LeCun 2006, CVPR, eq. 4, without its halves; each sum is divided by its number of
    active pairs, since the few positives would drown among the negatives.
    """
    references = references or References.of_batch(embeddings, labels)
    distance = distances(cosine_similarities(embeddings, references.embeddings))
    positives, negatives = references.pairs(labels)
    pulled = (distance - positive_margin).clamp_min(0) * positives
    pushed = (negative_margin - distance).clamp_min(0) * negatives
    total = distance.new_zeros(())
    for hinges in (pulled, pushed):
        active = (hinges > 0).sum()
        penalties = hinges.square() if squared else hinges
        total = total + penalties.sum() / references.mean_count(active)
    return total


def triplet_margin_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    margin: float | None = 0.2,
    mining: Mining = "semi-hard",
    squared: bool = True,
) -> Tensor:
    """Hinge of an anchor's distance to a positive over that to a negative.

    Args:
        embeddings: (b, D) float, unit length: this worker's anchors.
        labels: (b,) int64 class ids.
        references: the global batch; None: the anchors themselves.
        margin: wanted gap between the two distances; None, only with batch-hard: log(1 + exp(gap)).
        mining: "all" valid triplets, mean over those that are active (gap above -margin); "semi-hard", every
            negative farther than the positive but by less than the margin; "batch-hard", each anchor's farthest
            positive and nearest negative, mean over the anchors that have both.
        squared: squared Euclidean distances, as FaceNet; False: plain ones, as Hermans et al.

    Returns:
        Scalar. 0 with zero gradient when no triplet is valid. Memory O(b W b): triplets are summed by sorting
        each anchor's negatives, not enumerated.

    Raises:
        ValueError: no margin without batch-hard mining.

    Source: Schroff et al. 2015, arXiv:1503.03832, sec. 3; Hermans et al. 2017, arXiv:1703.07737, eq. 5 and sec. 2.
    """
    references = references or References.of_batch(embeddings, labels)
    similarities = cosine_similarities(embeddings, references.embeddings)
    distance = squared_distances(similarities) if squared else distances(similarities)
    positives, negatives = references.pairs(labels)
    if mining == "batch-hard":
        total, count = _batch_hard(distance, positives, negatives, margin)
    elif margin is None:
        raise ValueError(f"A soft margin (None) needs batch-hard mining; got mining {mining!r}.")
    else:
        total, count = _triplets(distance, positives, negatives, margin, semi_hard=mining == "semi-hard")
    return total / references.mean_count(count)


def _batch_hard(
    distance: Tensor, positives: Tensor, negatives: Tensor, margin: float | None
) -> tuple[Tensor, Tensor]:
    """Sum and number of the anchors' hardest triplets."""
    farthest = distance.masked_fill(~positives, -_ABSENT).amax(1)
    nearest = distance.masked_fill(~negatives, _ABSENT).amin(1)
    valid = positives.any(1) & negatives.any(1)
    gap = torch.where(valid, farthest - nearest, 0.0)
    losses = F.softplus(gap) if margin is None else (gap + margin).clamp_min(0)
    return (losses * valid).sum(), valid.sum()


def _triplets(
    distance: Tensor, positives: Tensor, negatives: Tensor, margin: float, *, semi_hard: bool
) -> tuple[Tensor, Tensor]:
    """Sum and number of the active triplets, by sorted negatives and prefix sums.

    For one positive at distance d the active negatives are those nearer than d + margin (and farther than d if
    semi-hard): a run of the sorted row, whose sum is a difference of prefix sums. O(R log R) a row.
    """
    most = int(positives.sum(1).max()) if positives.numel() else 0
    if most == 0 or not negatives.any():
        return distance.sum() * 0.0, distance.new_zeros(())
    # Each row's positives side by side, padded: (b, most).
    order = positives.to(torch.int8).topk(most, dim=1).indices
    present = positives.gather(1, order)
    to_positive = distance.gather(1, order)
    to_negative = distance.masked_fill(~negatives, _ABSENT).sort(1).values
    prefix = F.pad(torch.where(to_negative < _ABSENT, to_negative, 0.0).cumsum(1), (1, 0))
    searched = to_negative.detach().contiguous()
    end = torch.searchsorted(searched, (to_positive + margin).detach(), right=False)
    if semi_hard:
        start = torch.searchsorted(searched, to_positive.detach().contiguous(), right=True)
    else:
        start = torch.zeros_like(end)
    number = ((end - start).clamp_min(0) * present).to(distance.dtype)
    within = (prefix.gather(1, end) - prefix.gather(1, start)) * present
    return (number * (to_positive + margin) - within).sum(), number.sum().detach()


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
) -> Tensor:
    """Soft hinges of an anchor's mined positives and negatives, mean over all anchors.

    Args:
        embeddings: (b, D) float, unit length: this worker's anchors.
        labels: (b,) int64 class ids.
        references: the global batch; None: the anchors themselves.
        alpha, beta: sharpness on the positive and the negative side.
        base: similarity between the two sides, lambda in the paper (there 1; its code and everybody since 0.5).
        epsilon: the miner keeps a negative above the least similar positive minus epsilon, a positive below the
            most similar negative plus epsilon; None: no mining.

    Returns:
        Scalar. 0 with zero gradient when no pair is kept. Memory O(b W b).

    Source: Wang et al. 2019, arXiv:1904.06627, eq. 9-11.
    """
    references = references or References.of_batch(embeddings, labels)
    similarities = cosine_similarities(embeddings, references.embeddings)
    positives, negatives = references.pairs(labels)
    if epsilon is not None:
        known = similarities.detach()
        hardest_positive = known.masked_fill(~positives, _ABSENT).amin(1, keepdim=True)
        hardest_negative = known.masked_fill(~negatives, -_ABSENT).amax(1, keepdim=True)
        # Without positives (or negatives) the bound is out of reach and nothing is kept.
        negatives = negatives & (known > hardest_positive - epsilon)
        positives = positives & (known < hardest_negative + epsilon)
    pulled = log_one_plus_sum(-alpha * (similarities - base), positives) / alpha
    pushed = log_one_plus_sum(beta * (similarities - base), negatives) / beta
    return (pulled + pushed).mean() if len(pulled) else similarities.sum()


def log_one_plus_sum(exponents: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum of exp over the mask), per row: (b, R) to (b,)."""
    return F.softplus(exponents.masked_fill(~mask, -_ABSENT).logsumexp(1))


class Contrastive(nn.Module):
    """`contrastive_loss` with its settings."""

    def __init__(
        self, positive_margin: float = 0.0, negative_margin: float = 1.0, *, squared: bool = True
    ) -> None:
        super().__init__()
        self.positive_margin, self.negative_margin, self.squared = positive_margin, negative_margin, squared

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return contrastive_loss(
            embeddings,
            labels,
            references,
            positive_margin=self.positive_margin,
            negative_margin=self.negative_margin,
            squared=self.squared,
        )


class TripletMargin(nn.Module):
    """`triplet_margin_loss` with its settings."""

    def __init__(
        self, margin: float | None = 0.2, *, mining: Mining = "semi-hard", squared: bool = True
    ) -> None:
        super().__init__()
        self.margin, self.mining, self.squared = margin, mining, squared

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return triplet_margin_loss(
            embeddings, labels, references, margin=self.margin, mining=self.mining, squared=self.squared
        )


class MultiSimilarity(nn.Module):
    """`multi_similarity_loss` with its settings."""

    def __init__(
        self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float | None = 0.1
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.base, self.epsilon = alpha, beta, base, epsilon

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return multi_similarity_loss(
            embeddings,
            labels,
            references,
            alpha=self.alpha,
            beta=self.beta,
            base=self.base,
            epsilon=self.epsilon,
        )

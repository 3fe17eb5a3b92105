"""Triplets without listing them: it is enough to count in how many violating ones each distance is."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from dml.losses.blocks import Pairs, softplus, sum_over_anchors
from dml.losses.references import References
from dml.similarity import distances, squared_distances

Mining = Literal["all", "batch-hard", "semi-hard"]

# So many positives are gone through one by one, which for few is faster than binary search: B = 4096, K = 4,
# one thread, forward and backward 0.6 s against 1.3 s. At most 255, as it counts in bytes.
_FEW_POSITIVES = 16


def triplet_margin_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    mining: Mining = "semi-hard",
    margin: float | None = 0.2,
    squared: bool = True,
    block_rows: int | None = None,
) -> Tensor:
    """Hinge on (anchor, positive, negative): the negative must be farther than the positive by the margin.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        mining: "semi-hard": all triplets whose negative is farther than the positive, but within the margin
            (Schroff et al., sec. 3.2), averaged. "all": every triplet, averaged over those that violate the
            margin (Hermans et al., "batch all", nonzero mean). "batch-hard": each anchor's farthest positive
            and closest negative, averaged over anchors that have both (ibid., eq. 5).
        margin: wanted gap, in the distance used; None: soft margin log(1 + exp(gap)), averaged over all
            triplets of "all" or "batch-hard", where "all" takes memory for P times the block.
        squared: squared Euclidean distance, as Schroff et al.; False: plain, as Hermans et al.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar. 0 with zero gradient when there is no such triplet.

    Raises:
        ValueError: semi-hard mining with a soft margin.

    Source: Schroff et al. 2015, arXiv:1503.03832; Hermans et al. 2017, arXiv:1703.07737.
    """
    _check(mining, margin)
    references = References.of(embeddings, labels, references)
    terms = partial(_triplet_terms, mining=mining, margin=margin, squared=squared)
    total, count = sum_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)
    return references.average(total, count)


def _check(mining: Mining, margin: float | None) -> None:
    if mining == "semi-hard" and margin is None:
        raise ValueError(
            "Semi-hard triplets are those within the margin, so it must be a number; got None. "
            'Give a margin, or mine "batch-hard" or "all".'
        )


def _triplet_terms(pairs: Pairs, *, mining: Mining, margin: float | None, squared: bool) -> Tensor:
    distance = squared_distances if squared else distances
    positive = distance(pairs.positive_similarities)
    negative = distance(pairs.similarities)
    if mining == "batch-hard":
        return _hardest(pairs, positive, negative, margin)
    if margin is None:
        return _soft(pairs, positive, negative)
    return _within_margin(pairs, positive, negative, margin, semi_hard=mining == "semi-hard")


def _hardest(pairs: Pairs, positive: Tensor, negative: Tensor, margin: float | None) -> Tensor:
    farthest = positive.masked_fill(~pairs.positives, -torch.inf).amax(1)
    closest = negative.masked_fill(~pairs.negatives, torch.inf).amin(1)
    valid = farthest.isfinite() & closest.isfinite()
    # Chosen before subtracting: the gradient of inf - inf is not a number, masked or not.
    gap = torch.where(valid, farthest, 0.0) - torch.where(valid, closest, 0.0)
    return torch.stack([(_penalty(gap, margin) * valid).sum(), valid.sum().to(gap.dtype)])


def _penalty(gap: Tensor, margin: float | None) -> Tensor:
    return softplus(gap) if margin is None else (gap + margin).clamp_min(0)


def _soft(pairs: Pairs, positive: Tensor, negative: Tensor) -> Tensor:
    valid = pairs.positives[:, :, None] & pairs.negatives[:, None, :]
    penalty = softplus(positive[:, :, None] - negative[:, None, :])
    return torch.stack([(penalty * valid).sum(), valid.sum().to(penalty.dtype)])


def _within_margin(
    pairs: Pairs, positive: Tensor, negative: Tensor, margin: float, *, semi_hard: bool
) -> Tensor:
    """Sum and number of the violating triplets of every anchor with p positives and n negatives.

    The hinges' sum is linear in the distances once it is known in how many violating triplets each takes
    part, so those are counted, without gradient.
    """
    # A pair that is none is closer than any negative, and violates nothing.
    positive = positive.masked_fill(~pairs.positives, -torch.inf)
    count_triplets = _count_by_column if positive.shape[1] <= _FEW_POSITIVES else _count_by_sort
    with torch.no_grad():
        per_positive, per_negative = count_triplets(positive, negative, pairs.negatives, margin, semi_hard)
    count = per_negative.sum(dtype=negative.dtype)
    farther = torch.where(pairs.positives, positive, 0.0)
    total = (per_positive * farther).sum() - (per_negative * negative).sum() + margin * count
    return torch.stack([total, count])


def _count_by_column(
    positive: Tensor, negative: Tensor, negatives: Tensor, margin: float, semi_hard: bool
) -> tuple[Tensor, Tensor]:
    """In how many violating triplets each positive, (A, P), and each negative, (A, R), takes part: O(n p)."""
    per_positive = []
    per_negative = torch.zeros_like(negatives, dtype=torch.uint8)
    nearest = negative - margin
    for column in torch.split(positive, 1, dim=1):
        violating = (nearest < column) & negatives
        if semi_hard:
            violating &= column < negative
        per_positive.append(violating.count_nonzero(1))
        per_negative += violating
    return torch.stack(per_positive, 1), per_negative


def _count_by_sort(
    positive: Tensor, negative: Tensor, negatives: Tensor, margin: float, semi_hard: bool
) -> tuple[Tensor, Tensor]:
    """The same in O((n + p) log p).

    A negative at distance d violates with the positives farther than d - margin; of these, in ascending order
    from `first` to `last`, semi-hard leaves out those not closer than d.
    """
    positive, order = positive.sort(1)
    first = torch.searchsorted(positive, negative - margin, right=True)
    last = torch.searchsorted(positive, negative) if semi_hard else torch.full_like(first, positive.shape[1])
    per_negative = (last - first).clamp_min(0) * negatives
    # A range [first, last) of positives adds one at its beginning and takes it away behind its end.
    ends = torch.zeros(len(positive), positive.shape[1] + 1, device=positive.device, dtype=torch.int64)
    active = (per_negative > 0).to(torch.int64)
    ends.scatter_add_(1, first, active).scatter_add_(1, last, -active)
    per_positive = torch.empty_like(order).scatter_(1, order, ends.cumsum(1)[:, :-1])
    return per_positive, per_negative


class TripletMargin(nn.Module):
    """`triplet_margin_loss` as a module."""

    def __init__(
        self, margin: float | None = 0.2, *, mining: Mining = "semi-hard", squared: bool = True
    ) -> None:
        super().__init__()
        _check(mining, margin)
        self.margin = margin
        self.mining = mining
        self.squared = squared

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return triplet_margin_loss(
            embeddings, labels, references, mining=self.mining, margin=self.margin, squared=self.squared
        )

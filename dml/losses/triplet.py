"""Triplets without listing them: it is enough to know in how many violating ones each pair takes part."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Unpack

import torch
from torch import Tensor

from dml.losses.arguments import Range, Seed
from dml.losses.base import LossOptions
from dml.losses.blocks import (
    Pairs,
    Totals,
    average_over_anchors,
    softplus,
    total_and_count,
)
from dml.losses.chance import Chance
from dml.losses.mining import MinedLoss, Miner, Mining, Tuples, beyond_margin, miner_of
from dml.losses.references import References
from dml.similarity import distances, inverse_or_zero

# So many positives are gone through one by one, which for few is faster than binary search.
_FEW_POSITIVES = 32


def triplet_margin_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    mining: Mining | Miner = "semi-hard",
    margin: float | None = 0.2,
    squared: bool = True,
    chance: Chance | None = None,
    block_rows: int | None = None,
) -> Tensor:
    """Hinge on (anchor, positive, negative): the negative must be farther than the positive by the margin.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        mining: "semi-hard": all triplets whose negative is farther than the positive, but within the margin
            (Schroff et al., sec. 3.2), averaged. "all": every triplet, averaged over those that violate the
            margin (Hermans et al., "batch all", nonzero mean). Else what `dml.losses.mining` describes under
            the name, or a miner; averaged over the kept triplets, those without loss included.
        margin: wanted gap, in the distance used; None: soft margin log(1 + exp(gap)), averaged over all
            kept triplets.
        squared: squared Euclidean distance, as Schroff et al.; False: plain, as Hermans et al.
        chance: of the miners that draw; None: always the same draws.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar. 0 with zero gradient when there is no such triplet.

    Raises:
        ValueError: semi-hard mining with a soft margin, or a name that is no miner's.

    Source: Schroff et al. 2015, arXiv:1503.03832; Hermans et al. 2017, arXiv:1703.07737.
    """
    references = References.of(embeddings, labels, references)
    miner = miner_of(mining, dim=embeddings.shape[1], margin=margin, squared=squared)
    chance = chance or Chance.of_first_call(labels)
    if margin is not None and mining in ("all", "semi-hard"):
        terms = partial(_violating, margin=margin, squared=squared, semi_hard=mining == "semi-hard")
    else:
        terms = partial(_mined, miner=miner, chance=chance, margin=margin, squared=squared)
    return average_over_anchors(
        terms,
        embeddings,
        labels,
        references,
        block_rows=block_rows,
    )


def _mined(pairs: Pairs, *, miner: Miner, chance: Chance, margin: float | None, squared: bool) -> Totals:
    tuples = miner(pairs, chance)
    distance = _squared if squared else distances
    if not tuples.paired:
        return _products(tuples, pairs.positives, margin, distance)
    gap = torch.where(tuples.is_kept, distance(pairs.positives) - distance(tuples.negatives), 0.0)
    return total_and_count(_penalty(gap, margin), tuples.is_kept)


def _squared(similarities: Tensor) -> Tensor:
    # Not held at 0 where rounding brings a similarity beyond 1: a gradient along the embedding moves nothing.
    return 2 - 2 * similarities


def _penalty(gap: Tensor, margin: float | None) -> Tensor:
    return softplus(gap) if margin is None else (gap + margin).clamp_min(0)


@torch.no_grad()
def _products(
    tuples: Tuples, positives: Tensor, margin: float | None, distance: Callable[[Tensor], Tensor]
) -> Totals:
    """Every kept positive with every kept negative of its anchor, one positive at a time."""
    near = distance(positives)
    far = distance(tuples.negatives).clamp_max(_FARTHEST)  # a negative at rest has no penalty at all
    kept = tuples.is_kept.to(near.dtype)
    total, of_positives, of_negatives = near.new_zeros(()), [], torch.zeros_like(far)
    for slot in range(near.shape[1]):
        gap = near[:, slot, None] - far
        weight = kept[:, slot, None]
        total += (_penalty(gap, margin) * weight).sum()
        slope = (gap.sigmoid_() if margin is None else (gap + margin).relu_().sign_()) * weight
        of_positives.append(slope.sum(1))
        of_negatives += slope
    num_triplets = ((tuples.negatives >= -2).sum(1) * kept.sum(1)).sum()
    slopes = _slopes(torch.stack(of_positives, 1), of_negatives, near, far, squared=distance is _squared)
    return Totals(total[None], num_triplets[None], (slopes,))


@torch.no_grad()
def _violating(pairs: Pairs, *, margin: float, squared: bool, semi_hard: bool) -> Totals:
    """Sum and number of the triplets that violate the margin, of anchors with p positives and n negatives.

    The hinges' sum is linear in the distances once it is known in how many violating triplets each takes
    part; those counts are also its gradient.
    """
    none = ~pairs.is_positive
    bounds = beyond_margin(pairs.positives, margin, squared=squared).masked_fill(none, _UNREACHED)
    nearest = pairs.positives.masked_fill(none, _UNREACHED) if semi_hard else None
    count = _count_by_slot if bounds.shape[1] <= _FEW_POSITIVES else _count_by_sort
    of_positives, of_negatives = count(pairs.negatives, bounds, nearest)
    num_triplets = of_positives.sum()
    distance = _squared if squared else distances
    near, far = distance(pairs.positives), distance(pairs.negatives).clamp_max(_FARTHEST)
    total = (of_positives * near).sum() - (of_negatives * far).sum() + margin * num_triplets
    slopes = _slopes(of_positives, of_negatives, near, far, squared=squared)
    return Totals(total[None], num_triplets[None], (slopes,))


def _slopes(
    of_positives: Tensor, of_negatives: Tensor, near: Tensor, far: Tensor, *, squared: bool
) -> tuple[Tensor, Tensor]:
    """Gradients at similarities, negatives first, from those at distances: of positives +, of negatives -."""
    if squared:
        return 2 * of_negatives, -2 * of_positives
    return of_negatives * inverse_or_zero(far), -of_positives * inverse_or_zero(near)


# Beyond any distance, and finite: counted 0 times it is 0.
_FARTHEST = 100.0
# More than any similarity.
_UNREACHED = 3.0


def _count_by_slot(negatives: Tensor, bounds: Tensor, nearest: Tensor | None) -> tuple[Tensor, Tensor]:
    """In how many violating triplets each positive, (A, P), and each negative, (A, R), takes part: O(n p).

    A triplet violates when its negative's similarity is above the positive's bound and, if those are given,
    below `nearest`. In floats throughout: comparisons and sums of bools take three times as long.
    """
    of_positives, of_negatives = [], torch.zeros_like(negatives)
    for slot in range(bounds.shape[1]):
        violating = (negatives - bounds[:, slot, None]).relu_().sign_()
        if nearest is not None:
            violating *= (nearest[:, slot, None] - negatives).relu_().sign_()
        of_positives.append(violating.sum(1))
        of_negatives += violating
    return torch.stack(of_positives, 1), of_negatives


def _count_by_sort(negatives: Tensor, bounds: Tensor, nearest: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in O((n + p) log p).

    Bounds and `nearest` ascend together, so the positives that a negative violates with are neighbours.
    """
    bounds, order = bounds.sort(1)
    last = torch.searchsorted(bounds, negatives)
    first = torch.zeros_like(last)
    if nearest is not None:
        first = torch.searchsorted(nearest.gather(1, order), negatives, right=True).minimum(last)
    # A range [first, last) of positives adds one at its beginning and takes it away behind its end.
    ends = torch.zeros(len(bounds), bounds.shape[1] + 1, device=bounds.device, dtype=torch.int64)
    one = torch.ones_like(last)
    ends.scatter_add_(1, first, one).scatter_add_(1, last, -one)
    of_positives = torch.empty_like(bounds).scatter_(1, order, ends.cumsum(1)[:, :-1].to(bounds.dtype))
    return of_positives, (last - first).to(negatives.dtype)


class TripletMargin(MinedLoss):
    """`triplet_margin_loss` as a module."""

    def __init__(
        self,
        margin: Annotated[float, Range(gt=0, le=4)] | None = 0.2,
        *,
        mining: Mining | Miner = "semi-hard",
        squared: bool = True,
        seed: Seed = 0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(mining, seed, margin=margin, **options)
        if margin is not None and not squared and margin > 2:
            raise ValueError(
                f"margin must be at most 2, the largest distance of unit vectors; got {margin}. With "
                "squared=True it is at most 4."
            )
        self.margin, self.squared = margin, squared

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return triplet_margin_loss(
            embeddings,
            labels,
            references,
            mining=self.mining,
            margin=self.margin,
            squared=self.squared,
            chance=self.next_chance(),
        )

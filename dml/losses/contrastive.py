"""Contrastive loss: pulls positives below one distance and pushes negatives beyond another."""

from typing import Annotated, Unpack

import torch
from torch import Tensor

from dml.arguments import Range
from dml.losses.core.miners import MinedLoss, MinedOptions, Miner, Mining, Tuples
from dml.losses.core.pair_loss import MASKED, Pairs, Totals
from dml.similarity import distances


class Contrastive(MinedLoss):
    """Positives are pulled within one margin, negatives pushed beyond another; the sum of the two means.

        mean over active (a, p) of max(0, d(a, p) - positive_margin)^2
      + mean over active (a, n) of max(0, negative_margin - d(a, n))^2

    Active pairs violate their margin. With K images per class there are B / K times more negative than
    positive pairs, and most of them are inactive. 0 with zero gradient if no pair is active.

    On a CPU the few active negatives are selected before their distances are computed: 1.7 times the duration
    of X @ X.T (B = 4096) instead of 4.6 times for all negatives (`python -m benchmarks.losses`).

    Args:
        positive_margin: Euclidean distance below which positives are inactive, [0, 2].
        negative_margin: Euclidean distance beyond which negatives are inactive, (0, 2].
        squared: square the hinges, as in the paper; False: as in pytorch-metric-learning.
        mining: selects the pairs: a name of `MINING`, or a miner.
        options: seed, normalize; see `MinedLoss`.

    Source: Hadsell, Chopra, LeCun 2006, "Dimensionality reduction by learning an invariant mapping", eq. 4,
    without the factors 1/2.

    Example:
        >>> import torch
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> round(Contrastive()(embeddings, labels).item(), 4)
        0.9351
    """

    def __init__(
        self,
        positive_margin: Annotated[float, Range(ge=0, le=2)] = 0.0,
        negative_margin: Annotated[float, Range(gt=0, le=2)] = 1.0,
        *,
        squared: bool = True,
        mining: Mining | Miner = "all",
        **options: Unpack[MinedOptions],
    ) -> None:
        super().__init__(mining, **options)
        self.positive_margin, self.negative_margin, self.squared = positive_margin, negative_margin, squared

    def terms(self, pairs: Pairs) -> Totals:
        tuples = self.miner(pairs)
        positives = _select(tuples.is_kept, pairs.positives, 1.0)
        negatives = _possibly_within(tuples, self.negative_margin)
        hinges = [
            (distances(positives) - self.positive_margin).clamp_min(0),
            (self.negative_margin - distances(negatives)).clamp_min(0),
        ]
        num_active = torch.stack([torch.count_nonzero(hinge).to(hinge.dtype) for hinge in hinges])
        return Totals(torch.stack([(h.square() if self.squared else h).sum() for h in hinges]), num_active)


def _possibly_within(tuples: Tuples, distance: float) -> Tensor:
    """The similarities of kept negatives closer than a distance; rounding may include a few more."""
    if tuples.paired:
        return _select(tuples.is_kept, tuples.negatives, MASKED)
    is_within = tuples.negatives > 1 - 0.5 * distance**2 - 1e-6
    return _select(is_within, tuples.negatives, MASKED)


def _select(mask: Tensor, values: Tensor, inactive: float) -> Tensor:
    """The values where the mask is True.

    On a GPU all values, with `inactive` elsewhere: no synchronization.
    """
    return values[mask] if values.device.type == "cpu" else torch.where(mask, values, inactive)

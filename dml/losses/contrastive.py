"""Contrastive loss: pulls positives below one distance and pushes negatives beyond another."""

from typing import Annotated, Unpack

import torch
from torch import Tensor

from dml.arguments import Range
from dml.losses.core.miners import MinedLoss, MinedOptions, Miner, Mining
from dml.losses.core.pair_loss import MASKED, Pairs, Totals
from dml.similarity import distances, inverse_or_zero


class Contrastive(MinedLoss):
    """Positives are pulled within one margin, negatives pushed beyond another; the sum of the two means.

        mean over active (a, p) of max(0, d(a, p) - positive_margin)^2
      + mean over active (a, n) of max(0, negative_margin - d(a, n))^2

    Active pairs violate their margin. With K images per class there are B / K times more negative than
    positive pairs, and most of them are inactive. 0 with zero gradient if no pair is active.

    The gradients of all pairs are computed with their hinges, in a third of autograd's passes over the
    similarities: 0.58 of its time on an H200 at B = 32,768, where pytorch-metric-learning takes as long and
    20 times the memory (`python -m benchmarks --gpu`).

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
        if self.mining == "all":
            return self._all_pairs(pairs)
        tuples = self.miner(pairs)
        negatives = tuples.negatives
        if tuples.paired:
            negatives = torch.where(tuples.is_kept, negatives, MASKED)
        hinges = [
            (distances(torch.where(tuples.is_kept, pairs.positives, 1.0)) - self.positive_margin).clamp_min(
                0
            ),
            (self.negative_margin - distances(negatives)).clamp_min(0),
        ]
        return Totals(self._sums(hinges), _num_active(hinges))

    @torch.no_grad()
    def _all_pairs(self, pairs: Pairs) -> Totals:
        """The gradients with the sums, in a third of autograd's passes over the similarities."""
        near, far = distances(pairs.positives), distances(pairs.negatives)
        pulled = (near - self.positive_margin).clamp_min_(0).masked_fill_(~pairs.is_positive, 0)
        pushed = (self.negative_margin - far).clamp_min_(0)
        sums, counts = self._sums([pulled, pushed]), _num_active([pulled, pushed])
        grad_positives = self._grad_hinge(pulled).mul_(inverse_or_zero(near)).neg_()
        grad_negatives = self._grad_hinge(pushed).mul_(inverse_or_zero(far))
        return Totals(sums, counts, ((None, grad_positives), (grad_negatives, None)))

    def _sums(self, hinges: list[Tensor]) -> Tensor:
        return torch.stack([(hinge.square() if self.squared else hinge).sum() for hinge in hinges])

    def _grad_hinge(self, hinge: Tensor) -> Tensor:
        """The gradient of the sum, in the place of the hinges."""
        return hinge.mul_(2) if self.squared else hinge.sign_()


def _num_active(hinges: list[Tensor]) -> Tensor:
    return torch.stack([torch.count_nonzero(hinge).to(hinge.dtype) for hinge in hinges])

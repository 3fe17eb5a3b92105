"""NT-Xent, also called InfoNCE: each positive against the anchor's negatives."""

from typing import Unpack

import torch

from dml.arguments import PositiveFloat
from dml.losses.core.base import LossOptions
from dml.losses.core.log_sum_exp import softplus
from dml.losses.core.pair_loss import PairLoss, Pairs, Totals, total_and_count


class NTXent(PairLoss):
    """Each positive against the anchor's negatives only; averaged over positive pairs. Also: InfoNCE.

        mean over (a, p) of -log(e^(s(a, p) / t) / (e^(s(a, p) / t) + sum over n of e^(s(a, n) / t)))

    With one positive per anchor it is `SupCon`. 0 with zero gradient when no pair is positive.

    The exponentials of an anchor's negatives are summed once for all its positives, and are their gradient
    but for a factor: 0.9 times X @ X.T at B = 4096, where a softmax for every pair runs out of 8 GiB.

    Args:
        temperature: t, divides similarities, > 0.
        options: normalize; see `EmbeddingLoss`.

    Source: Chen et al. 2020, arXiv:2002.05709, eq. 1; temperature of their table 5.

    Example:
        >>> import torch
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> round(NTXent()(embeddings, labels).item(), 4)
        1.0647
    """

    def __init__(self, temperature: PositiveFloat = 0.1, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.temperature = temperature

    @torch.no_grad()
    def terms(self, pairs: Pairs) -> Totals:
        scale = 1 / self.temperature
        peak = pairs.negatives.amax(1, keepdim=True)
        peak = torch.where(peak.isfinite(), peak, 0.0)
        exponentials = (pairs.negatives - peak).mul_(scale).exp_()
        total = exponentials.sum(1, keepdim=True)
        # Without negatives the gap is -inf: a pair of loss 0, that counts.
        gap = total.log() + scale * (peak - pairs.positives)
        weights = scale * gap.sigmoid() * pairs.is_positive
        factor = weights.sum(1, keepdim=True) / total.clamp_min(torch.finfo(total.dtype).tiny)
        sums, counts, _ = total_and_count(softplus(gap), pairs.is_positive)
        return Totals(sums, counts, ((exponentials.mul_(factor), -weights),))

"""NT-Xent, also called InfoNCE: each positive against the negatives of its anchor."""

from typing import Unpack

import torch

from dml.arguments import PositiveFloat
from dml.losses.core.base import LossOptions
from dml.losses.core.log_sum_exp import softplus
from dml.losses.core.pair_loss import PairLoss, Pairs, Totals, total_and_count


class NTXent(PairLoss):
    """Cross-entropy of each positive against the negatives of its anchor, averaged over positive pairs.

        mean over (a, p) of -log(e^(s(a, p) / t) / (e^(s(a, p) / t) + sum over n of e^(s(a, n) / t)))

    With one positive per anchor it equals `SupCon`. 0 with zero gradient if there is no positive pair.

    The exponentials of the negatives are computed and summed once per anchor instead of once per pair, and
    reused for the gradient: 0.9 times the duration of X @ X.T at B = 4096. A softmax for every pair needs
        more
    than 8 GiB (`python -m benchmarks.losses`).

    Args:
        temperature: t, divides similarities, > 0.
        options: normalize; see `EmbeddingLoss`.

    Source: Chen et al. 2020, arXiv:2002.05709, eq. 1; temperature from table 5.

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
        # Without negatives the gap is -inf: the pair has loss 0 and is counted.
        gap = total.log() + scale * (peak - pairs.positives)
        weights = scale * gap.sigmoid() * pairs.is_positive
        factor = weights.sum(1, keepdim=True) / total.clamp_min(torch.finfo(total.dtype).tiny)
        sums, counts, _ = total_and_count(softplus(gap), pairs.is_positive)
        return Totals(sums, counts, ((exponentials.mul_(factor), -weights),))

"""Circle loss: each similarity is weighted by its distance from its optimum."""

from typing import Annotated, Unpack

from dml.arguments import PositiveFloat, Range
from dml.losses.core.base import LossOptions
from dml.losses.core.log_sum_exp import softplus
from dml.losses.core.pair_loss import PairLoss, Pairs, Totals, total_and_count
from dml.losses.core.soft_maxima import sum_of_soft_maxima


class Circle(PairLoss):
    """Log-sum-exp over pairs, each weighted by the distance of its similarity from the optimum 1 + m or -m.

        mean over a of log(1 + sum over n of e^(scale max(0, s(a, n) + m) (s(a, n) - m))
                             * sum over p of e^(-scale max(0, 1 + m - s(a, p)) (s(a, p) - 1 + m)))

    The mean is over anchors with a positive and a negative; 0 with zero gradient if there are none.

    The log of the product of sums is computed as a sum of two log-sum-exps: 1.4 times the duration of X @ X.T
    at B = 4096, 0.3 of its memory (`python -m benchmarks.losses`).

    Args:
        margin: m, [0, 1]; the paper uses 0.4 for retrieval and 0.25 for faces.
        scale: gamma; the paper uses 80 for retrieval and 256 for faces.
        options: normalize; see `EmbeddingLoss`.

    Source: Sun et al. 2020, arXiv:2002.10857, eq. 6-8; the weights carry no gradient, as in sec. 3.2.

    Example:
        >>> import torch
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> round(Circle()(embeddings, labels).item(), 4)
        19.2
    """

    def __init__(
        self,
        margin: Annotated[float, Range(ge=0, le=1)] = 0.4,
        scale: PositiveFloat = 80.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.margin, self.scale = margin, scale

    def terms(self, pairs: Pairs) -> Totals:
        margin, positives, negatives = self.margin, pairs.positives, pairs.negatives
        attracting = -self.scale * (1 + margin - positives.detach()).clamp_min(0) * (positives - (1 - margin))
        # At least 1e-30, because 0 times the -inf of a masked negative would be NaN.
        weights = (negatives.detach() + margin).clamp_min_(1e-30).mul_(self.scale)
        total, valid = sum_of_soft_maxima(pairs, attracting, weights * (negatives - margin))
        return total_and_count(softplus(total), valid)

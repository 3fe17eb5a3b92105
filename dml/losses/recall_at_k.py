"""Recall@k as a loss: one minus the smooth recall@k of each anchor."""

from collections.abc import Sequence
from typing import Unpack

import torch

from dml.arguments import PositiveFloat, PositiveInt
from dml.losses.core.base import LossOptions
from dml.losses.core.pair_loss import PairLoss, Pairs, Totals, total_and_count
from dml.losses.core.smooth_rank import smooth_ranks


class RecallAtK(PairLoss):
    """One minus the smooth fraction of positives among the k closest references, averaged over several k.

        1 - mean over a and k of  sum over p of sigmoid((k - rank of p) / t2) / min(k, number of positives)
        with rank of p = 1 + sum over j of sigmoid((s(a, j) - s(a, p)) / t1)

    The mean is over anchors with a positive; 0 with zero gradient if there are none.

    Computed for one positive at a time: 3.7 times the duration of X @ X.T at B = 4096, 0.3 of its memory
    (`python -m benchmarks.losses`).

    Args:
        ks: values of k, each at least 1.
        rank_temperature: t1, for the sigmoid of similarity differences, > 0.
        cut_temperature: t2, for the sigmoid of k minus the rank, > 0.
        options: normalize; see `EmbeddingLoss`.

    Source: Patel et al. 2022, arXiv:2108.11179, eq. 4-6. The denominator is min(k, number of positives), so
    that a perfect ranking has recall 1 for every k.

    Example:
        >>> import torch
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> round(RecallAtK()(embeddings, labels).item(), 4)
        0.217
    """

    def __init__(
        self,
        ks: Sequence[PositiveInt] = (1, 2, 4, 8, 16),
        *,
        rank_temperature: PositiveFloat = 0.01,
        cut_temperature: PositiveFloat = 1.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.ks, self.rank_temperature, self.cut_temperature = ks, rank_temperature, cut_temperature

    def terms(self, pairs: Pairs) -> Totals:
        _, rank = smooth_ranks(pairs, self.rank_temperature)
        num_positives = pairs.is_positive.sum(1)
        recalls = [
            (((k - rank) / self.cut_temperature).sigmoid() * pairs.is_positive).sum(1)
            / num_positives.clamp(1, k)
            for k in self.ks
        ]
        return total_and_count(1 - torch.stack(recalls).mean(0), num_positives > 0)

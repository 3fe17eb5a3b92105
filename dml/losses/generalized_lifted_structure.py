"""Generalized lifted structure loss: hinge on log-sum-exps of the distances of each anchor."""

from typing import Annotated, Unpack

import torch

from dml.arguments import Range
from dml.losses.core.base import LossOptions
from dml.losses.core.pair_loss import PairLoss, Pairs, Totals, total_and_count
from dml.losses.core.soft_maxima import sum_of_soft_maxima
from dml.similarity import distances


class GeneralizedLiftedStructure(PairLoss):
    """Hinge on the soft maximum of positive distances minus the soft minimum of negative distances.

        mean over a of max(0, log sum over p of e^d(a, p) + log sum over n of e^(margin - d(a, n)))

    The mean is over anchors with a positive and a negative; 0 with zero gradient if there are none.

    Computed in blocks of anchors: 1.7 times the duration of X @ X.T at B = 4096, 0.3 of its memory
    (`python -m benchmarks.losses`).

    Args:
        margin: required gap in Euclidean distance, (0, 2].
        options: normalize; see `EmbeddingLoss`.

    Source: Hermans et al. 2017, arXiv:1703.07737, eq. 8, after Oh Song et al. 2016, arXiv:1511.06452.

    Example:
        >>> import torch
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> round(GeneralizedLiftedStructure()(embeddings, labels).item(), 4)
        0.8711
    """

    def __init__(
        self, margin: Annotated[float, Range(gt=0, le=2)] = 1.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.margin = margin

    def terms(self, pairs: Pairs) -> Totals:
        repelling = self.margin - distances(pairs.negatives)
        total, valid = sum_of_soft_maxima(pairs, distances(pairs.positives), repelling)
        return total_and_count(torch.relu(total), valid)

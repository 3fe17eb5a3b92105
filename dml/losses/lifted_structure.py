"""Lifted structure loss: each positive pair against all negatives of both images."""

from functools import partial
from typing import Annotated, Unpack

import torch
from torch import Tensor

from dml.arguments import Range
from dml.losses.core.base import LossOptions
from dml.losses.core.log_sum_exp import log_sum_exp
from dml.losses.core.pair_loss import (
    PairLoss,
    Pairs,
    Totals,
    average_over_anchors,
    map_anchors,
    total_and_count,
)
from dml.losses.core.references import References
from dml.similarity import distances


class LiftedStructure(PairLoss):
    """Squared hinge on each positive pair against the soft minimum over the negatives of both images.

        1/2 mean over (i, j) of max(0, log(S(i) + S(j)) + d(i, j))^2
        with S(i) = sum over n of e^(margin - d(i, n))

    0 with zero gradient if no positive pair has negatives.

    S is computed once per image in a first pass, instead of once per pair: 2.5 times the duration of X @ X.T
    at B = 4096. Listing the pairs, as pytorch-metric-learning does, needs more than 8 GiB
    (`python -m benchmarks.losses`).

    Args:
        margin: alpha in the paper, in Euclidean distance, (0, 2].
        options: normalize; see `EmbeddingLoss`.

    Raises:
        ValueError: the references do not contain the anchors, e.g. those of a memory bank.

    Source: Oh Song et al. 2016, arXiv:1511.06452, eq. 4.

    Example:
        >>> import torch
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> round(LiftedStructure()(embeddings, labels).item(), 4)
        1.3428
    """

    within_batch = True

    def __init__(
        self, margin: Annotated[float, Range(gt=0, le=2)] = 1.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.margin = margin

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        references = references.with_anchors("Lifted structure")
        local = map_anchors(self._lse_negatives, embeddings, labels, references)
        terms = partial(self._terms, lse_negatives=_gather(local, references))
        return average_over_anchors(terms, embeddings, labels, references)

    def _lse_negatives(self, pairs: Pairs) -> Tensor:
        """(A,) log sum over n of e^(margin - d(a, n))."""
        return log_sum_exp(self.margin - distances(pairs.negatives))

    def _terms(self, pairs: Pairs, *, lse_negatives: Tensor) -> Totals:
        lse_anchor = self._lse_negatives(pairs)
        # Each pair occurs for both of its images. S of the positive is a constant here, so the gradient of
        # the anchor's S counts twice.
        lse_anchor = (2 * lse_anchor - lse_anchor.detach())[:, None]
        lse_positive = lse_negatives[pairs.positive_index]
        hinge = (torch.logaddexp(lse_anchor, lse_positive) + distances(pairs.positives)).clamp_min(0)
        losses = 0.5 * hinge.square() * (pairs.num_negatives > 0)[:, None]
        return total_and_count(losses, pairs.is_positive)


def _gather(local: Tensor, references: References) -> Tensor:
    """(W*B,) the values (B,) of all ranks, in rank order."""
    world_size = len(references.labels) // max(len(local), 1)
    gathered = local.new_zeros(len(references.labels))
    gathered[references.first_row : references.first_row + len(local)] = local
    return references.mean_over_ranks(gathered) * world_size

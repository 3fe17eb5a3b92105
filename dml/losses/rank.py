"""Smooth surrogates of the ranking measures themselves: average precision and Recall@k.

The rank of a positive is one more than the number of references closer than it; a sigmoid in place of the
step makes it differentiable. One positive at a time, so that memory is O(block * R) and not O(B^3).
"""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dml.losses.arguments import PositiveFloat, PositiveInt
from dml.losses.base import EmbeddingLoss, LossOptions
from dml.losses.blocks import AT_REST, Pairs, Totals, average_over_anchors, total_and_count
from dml.losses.references import References


def smooth_ap_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    temperature: float = 0.01,
    block_rows: int | None = None,
) -> Tensor:
    """One less the smooth average precision of each anchor's ranking of all others.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        temperature: of the sigmoid of similarity differences.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar, the mean over anchors that have a positive. 0 with zero gradient when none has.

    Source: Brown et al. 2020, arXiv:2007.12163, eq. 5.
    """
    references = References.of(embeddings, labels, references)

    def terms(pairs: Pairs) -> Totals:
        among_positives, rank = _smooth_ranks(pairs, temperature)
        num_positives = pairs.is_positive.sum(1)
        precision = (among_positives / rank * pairs.is_positive).sum(1) / num_positives.clamp_min(1)
        return total_and_count(1 - precision, num_positives > 0)

    return average_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)


def recall_at_k_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    rank_temperature: float = 0.01,
    cut_temperature: float = 1.0,
    block_rows: int | None = None,
) -> Tensor:
    """One less the smooth share of an anchor's positives among its k closest, averaged over several k.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        ks: the k, each at least 1.
        rank_temperature: of the sigmoid of similarity differences.
        cut_temperature: of the sigmoid of k less the rank.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar, the mean over anchors that have a positive. 0 with zero gradient when none has.

    Source: Patel et al. 2022, arXiv:2108.11179, eq. 4-6; the share is of min(k, number of positives), so that
    no k is out of reach.
    """
    references = References.of(embeddings, labels, references)

    def terms(pairs: Pairs) -> Totals:
        _, rank = _smooth_ranks(pairs, rank_temperature)
        num_positives = pairs.is_positive.sum(1)
        recall = torch.stack(
            [
                (((k - rank) / cut_temperature).sigmoid() * pairs.is_positive).sum(1)
                / num_positives.clamp(1, k)
                for k in ks
            ]
        ).mean(0)
        return total_and_count(1 - recall, num_positives > 0)

    return average_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)


def _smooth_ranks(pairs: Pairs, temperature: float) -> tuple[Tensor, Tensor]:
    """(A, P) each positive's smooth rank among the anchor's positives, and among all references."""
    positives = pairs.positives
    others = positives.masked_fill(~pairs.is_positive, AT_REST)
    # Of a positive against itself the sigmoid is 1/2, and its rank begins with 1.
    among_positives = _SoftCounts.apply(others, positives, temperature) + 0.5
    return among_positives, among_positives + _SoftCounts.apply(pairs.negatives, positives, temperature)


class _SoftCounts(torch.autograd.Function):
    """(A, P) how many of `values` (A, R) are above each of `thresholds` (A, P), by a sigmoid."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, thresholds: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(values, thresholds)
        ctx.temperature = temperature
        above = [_above(values, column, temperature).sum(1) for column in torch.split(thresholds, 1, 1)]
        return torch.stack(above, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        values, thresholds = ctx.saved_tensors
        of_values, of_thresholds = torch.zeros_like(values), []
        for column, weight in zip(torch.split(thresholds, 1, 1), torch.split(gradient, 1, 1), strict=True):
            above = _above(values, column, ctx.temperature)
            slope = above.addcmul_(above, above, value=-1).mul_(weight / ctx.temperature)
            of_thresholds.append(-slope.sum(1))
            of_values += slope
        return of_values, torch.stack(of_thresholds, 1), None


def _above(values: Tensor, threshold: Tensor, temperature: float) -> Tensor:
    return (values - threshold).div_(temperature).sigmoid_()


class SmoothAP(EmbeddingLoss):
    """`smooth_ap_loss` as a module."""

    def __init__(self, temperature: PositiveFloat = 0.01, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.temperature = temperature

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return smooth_ap_loss(embeddings, labels, references, temperature=self.temperature)


class RecallAtK(EmbeddingLoss):
    """`recall_at_k_loss` as a module."""

    def __init__(
        self,
        ks: Sequence[PositiveInt] = (1, 2, 4, 8, 16),
        *,
        rank_temperature: PositiveFloat = 0.01,
        cut_temperature: PositiveFloat = 1.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        if not ks:
            raise ValueError(f"ks must name one K or more; got {ks}. Pass (1,) for Recall@1.")
        self.ks, self.rank_temperature, self.cut_temperature = ks, rank_temperature, cut_temperature

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return recall_at_k_loss(
            embeddings,
            labels,
            references,
            ks=self.ks,
            rank_temperature=self.rank_temperature,
            cut_temperature=self.cut_temperature,
        )

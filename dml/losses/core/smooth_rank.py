"""Smooth ranks: a sigmoid in place of the step makes the rank of a positive differentiable.

    rank of p = 1 + sum over all others j of sigmoid((s_j - s_p) / temperature)

One positive at a time, so that memory is O(block * R) and not O(B^3).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dml.losses.core.pair_loss import MASKED, Pairs


def smooth_ranks(pairs: Pairs, temperature: float) -> tuple[Tensor, Tensor]:
    """(A, P) each positive's smooth rank among the anchor's positives, and among all references."""
    positives = pairs.positives
    among = positives.masked_fill(~pairs.is_positive, MASKED)
    # The sigmoid of a positive against itself is 1/2, and its rank begins with 1.
    rank_among_positives = _SoftCounts.apply(among, positives, temperature) + 0.5
    rank = rank_among_positives + _SoftCounts.apply(pairs.negatives, positives, temperature)
    return rank_among_positives, rank


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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        values, thresholds = ctx.saved_tensors
        grad_values, grad_thresholds = torch.zeros_like(values), []
        for column, weight in zip(torch.split(thresholds, 1, 1), torch.split(grad, 1, 1), strict=True):
            above = _above(values, column, ctx.temperature)
            derivative = above.addcmul_(above, above, value=-1).mul_(weight / ctx.temperature)
            grad_thresholds.append(-derivative.sum(1))
            grad_values += derivative
        return grad_values, torch.stack(grad_thresholds, 1), None


def _above(values: Tensor, threshold: Tensor, temperature: float) -> Tensor:
    return (values - threshold).div_(temperature).sigmoid_()

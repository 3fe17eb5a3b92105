"""Smooth ranks: the rank of a positive, made differentiable by a sigmoid instead of a step.

    rank of p = 1 + sum over all others j of sigmoid((s_j - s_p) / temperature)

Computed for one positive at a time: memory O(block * R) instead of O(B^3).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dml.losses.core.pair_loss import MASKED, Pairs


def smooth_ranks(pairs: Pairs, temperature: float) -> tuple[Tensor, Tensor]:
    """(A, P) smooth rank of each positive among the positives of its anchor, and among all references."""
    positives = pairs.positives
    only_positives = positives.masked_fill(~pairs.is_positive, MASKED)
    # The sum includes the positive itself with sigmoid(0) = 1/2; ranks start at 1.
    rank_among_positives = _SoftCounts.apply(only_positives, positives, temperature) + 0.5
    rank = rank_among_positives + _SoftCounts.apply(pairs.negatives, positives, temperature)
    return rank_among_positives, rank


class _SoftCounts(torch.autograd.Function):
    """(A, P) smooth number of `values` (A, R) above each of `thresholds` (A, P)."""

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

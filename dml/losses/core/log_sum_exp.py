"""Log-sum-exp functions with exact values and gradients for rows that are completely masked."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _LogSumExp(torch.autograd.Function):
    """log(floor + sum exp(values)) of every row; backward reuses the exponentials of forward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, floor: float) -> Tensor:
        peak = values.amax(1, keepdim=True)
        peak = peak.clamp_min(0) if floor else torch.where(peak.isfinite(), peak, 0.0)
        exponentials = (values - peak).exp_()
        total = exponentials.sum(1)
        if floor:
            total += floor * (-peak[:, 0]).exp()
        ctx.save_for_backward(exponentials, total)
        return torch.where(total > 0, total, 1.0).log() + peak[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        exponentials, total = ctx.saved_tensors
        weights = grad / torch.where(total > 0, total, 1.0)
        return exponentials * weights[:, None], None


def log_sum_exp(values: Tensor) -> Tensor:
    """log(sum exp(values)) of every row, (A, R) to (A,); -inf adds nothing, a row of only -inf gives 0."""
    lse: Tensor = _LogSumExp.apply(values, 0.0)
    return lse


def log_one_plus_sum_exp(values: Tensor) -> Tensor:
    """log(1 + sum exp(values)) of every row, (A, R) to (A,); -inf adds nothing and gets no gradient."""
    lse: Tensor = _LogSumExp.apply(values, 1.0)
    return lse


def softplus(values: Tensor) -> Tensor:
    """log(1 + exp(values)); same shape. `torch.nn.functional.softplus` is inexact above 20 in float64."""
    return -torch.nn.functional.logsigmoid(-values)

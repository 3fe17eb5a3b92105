"""Inner products of unit vectors, and the one place that decides their precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def cosine_similarities(anchors: Tensor, references: Tensor) -> Tensor:
    """All pairwise cosine similarities of unit vectors.

    Args:
        anchors: (A, D) float, unit length.
        references: (R, D) float, unit length.

    Returns:
        (A, R) float32, or float64 where the input is float64; larger is closer.
    """
    # Similarities in float32: just below 1.0 bfloat16 steps by 0.0039, so closer neighbours would tie.
    return product(at_least_float32(anchors), at_least_float32(references).T)


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product in the precision of its factors, forward and backward, whatever autocast says.

    Args:
        left: (..., M, K) float.
        right: (..., K, N) float.

    Returns:
        (..., M, N).
    """
    result: Tensor = _Product.apply(left, right)
    return result


class _Product(torch.autograd.Function):
    """A backward under autocast would round the gradients of torch's own product to bfloat16."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        with without_autocast(left.device):
            return left @ right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        needs_left, needs_right = ctx.needs_input_grad
        with without_autocast(gradient.device):
            grad_left = gradient @ right.mT if needs_left else None
            return grad_left, left.mT @ gradient if needs_right else None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Computing in the precision of the values themselves, on any device."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they came."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def unit_length(vectors: Tensor) -> Tensor:
    """Vectors divided by their Euclidean length; the gradient is exact.

    Args:
        vectors: (..., D) float.

    Returns:
        (..., D) float32, or float64 where the input is float64. A vector of zeros has no direction: it stays
        zero and gets a zero gradient, where an epsilon in the denominator would give one of 1e12; so does one
        whose entries are all subnormal, below 1.2e-38 in float32. A vector that is not finite gives NaN.
    """
    with without_autocast(vectors.device):
        unit: Tensor = _UnitLength.apply(at_least_float32(vectors))
    return unit


class _UnitLength(torch.autograd.Function):
    """x / |x|, of which autograd's own pieces take twice as many passes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        # A GPU is not waited for: there every batch takes the longer way.
        if values.device.type == "cpu" and _squares_are_ordinary(lengths):
            unit: Tensor = values / lengths
        else:
            scales = _scales(values)
            scaled = values * scales
            scaled_lengths = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
            scaled_lengths = torch.where(scaled_lengths > 0, scaled_lengths, torch.inf)
            unit, lengths = scaled / scaled_lengths, scaled_lengths / scales
        ctx.save_for_backward(unit, lengths)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, lengths = ctx.saved_tensors
        along = (gradient * unit).sum(-1, keepdim=True)
        return gradient.addcmul(unit, along, value=-1).div_(lengths)


def _squares_are_ordinary(lengths: Tensor) -> bool:
    """Whether no square of what matters to a length was too large or too small for its type."""
    limits = torch.finfo(lengths.dtype)
    return bool(((lengths > (limits.tiny / limits.eps) ** 0.5) & (lengths < torch.inf)).all())


def _scales(values: Tensor) -> Tensor:
    """(..., 1) powers of two, which round nothing, that bring each vector's largest entry to [2, 4); or 0."""
    largest = torch.linalg.vector_norm(values, torch.inf, dim=-1, keepdim=True)
    scales: Tensor = torch.ldexp(torch.ones_like(largest), 2 - torch.frexp(largest).exponent)
    return scales.masked_fill(largest < torch.finfo(values.dtype).tiny, 0.0)


def squared_distances(similarities: Tensor) -> Tensor:
    """Squared Euclidean distances of unit vectors, 2 - 2s, in [0, 4]; same shape."""
    return (2.0 - 2.0 * similarities).clamp_min(0.0)


def distances(similarities: Tensor) -> Tensor:
    """Euclidean distances of unit vectors; same shape. The gradient at distance 0 is 0, not infinite.

    A similarity of -inf, where there is no vector, is farther than anything and gets no gradient.
    """
    result: Tensor = _Distances.apply(similarities)
    return result


class _Distances(torch.autograd.Function):
    """sqrt(2 - 2s), of which autograd's own pieces cost three times as many passes over the matrix."""

    @staticmethod
    def forward(ctx: Any, similarities: Tensor) -> Tensor:
        result = torch.rsub(similarities, 2.0, alpha=2.0).clamp_(0.0, 1e30).sqrt_()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return inverse_or_zero(result).mul_(gradient).neg_()


def inverse_or_zero(distances: Tensor) -> Tensor:
    """1 / distance, and 0 at distance 0; same shape."""
    return distances.square().clamp_min_(1e-14).reciprocal_().mul_(distances)

"""Copies of the encoder during training: an exponential moving average, and the best step so far.

Both are modules, so that checkpoints contain them.
"""

import copy

import torch
from torch import Tensor, nn

from dml.models.encoder import Encoder


class AveragedEncoder(nn.Module):
    """Exponential moving average of an encoder, slightly better and less noisy than its last weights.

    After step t (from 0) every weight w becomes d w + (1 - d) w_t with d = min(decay, (1 + t) / (10 + t)), so
    the influence of the initial weights decreases quickly. Running statistics of batch norm are averaged like
    weights; batch counts are copied.
    Polyak and Juditsky 1992; the ramp is from TensorFlow's ExponentialMovingAverage.

    Args:
        encoder: initial value of the average; it is copied.
        decay: d, (0, 1).
    """

    def __init__(self, encoder: Encoder, decay: float) -> None:
        super().__init__()
        self.encoder = _frozen_copy(encoder)
        self.decay = decay

    @torch.no_grad()
    def update(self, encoder: Encoder, step: int) -> None:
        """Add the weights of the encoder after a step, counted from 0."""
        new_share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        tensor_pairs = _tensor_pairs(self.encoder, encoder)
        floats = [pair for pair in tensor_pairs if pair[0].is_floating_point()]
        # One call for all tensors: hundreds of kernel launches for small tensors would be slow on a GPU.
        torch._foreach_lerp_([average for average, _ in floats], [new for _, new in floats], new_share)
        for average, new in tensor_pairs:
            if not average.is_floating_point():
                average.copy_(new)


class BestEncoder(nn.Module):
    """The encoder of the step with the highest value so far; the first one in case of ties."""

    value: Tensor
    step: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = _frozen_copy(encoder)
        self.register_buffer("value", torch.tensor(-torch.inf, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))

    @torch.no_grad()
    def offer(self, encoder: Encoder, step: int, value: float) -> None:
        """Copy an encoder if its value is higher than all previous ones."""
        if value > self.value.item():
            self.value.fill_(value)
            self.step.fill_(step)
            for best, new in _tensor_pairs(self.encoder, encoder):
                best.copy_(new)


def _frozen_copy(encoder: Encoder) -> Encoder:
    return copy.deepcopy(encoder).requires_grad_(False).eval()


def _tensor_pairs(first: Encoder, second: Encoder) -> list[tuple[Tensor, Tensor]]:
    return list(zip(first.state_dict().values(), second.state_dict().values(), strict=True))

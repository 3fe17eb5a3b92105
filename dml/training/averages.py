"""Second copies of the encoder's weights that a run keeps: their moving average, and the best so far.

Both are modules, so that a checkpoint holds them like the weights themselves.
"""

import copy

import torch
from torch import Tensor, nn

from dml.models.encoder import Encoder


class AveragedEncoder(nn.Module):
    """An exponential moving average of an encoder, a little better and much steadier than its last weights.

    After step t (from 0) every weight w becomes d w + (1 - d) w_t with d = min(decay, (1 + t) / (10 + t)):
    the first steps soon forget where the run started. Batch norm's running statistics are averaged like the
    weights, so that they are those of about the same steps; counts of batches are copied.
    Polyak and Juditsky 1992; the ramp is that of TensorFlow's ExponentialMovingAverage.

    Args:
        encoder: what the average starts from; a copy is made.
        decay: d, (0, 1).
    """

    def __init__(self, encoder: Encoder, decay: float) -> None:
        super().__init__()
        self.encoder = _copy_of(encoder)
        self.decay = decay

    @torch.no_grad()
    def update(self, encoder: Encoder, step: int) -> None:
        """Take in the encoder's weights after a step, counted from 0."""
        new_share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        pairs = _tensors(self.encoder, encoder)
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        # At once: one by one, the hundreds of small tensors of a network take a GPU longer than their bytes.
        torch._foreach_lerp_([mine for mine, _ in averaged], [theirs for _, theirs in averaged], new_share)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


class BestEncoder(nn.Module):
    """The encoder of the step with the highest value so far; of equal values the first."""

    value: Tensor
    step: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = _copy_of(encoder)
        self.register_buffer("value", torch.tensor(-torch.inf, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))

    @torch.no_grad()
    def offer(self, encoder: Encoder, step: int, value: float) -> None:
        """Keep an encoder if its value is higher than any before."""
        if value > self.value.item():
            self.value.fill_(value)
            self.step.fill_(step)
            for mine, theirs in _tensors(self.encoder, encoder):
                mine.copy_(theirs)


def _copy_of(encoder: Encoder) -> Encoder:
    return copy.deepcopy(encoder).requires_grad_(False).eval()


def _tensors(mine: Encoder, theirs: Encoder) -> list[tuple[Tensor, Tensor]]:
    return list(zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True))

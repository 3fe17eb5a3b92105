"""A counter-based random number generator: numbers depend on the seed and counters, not on the worker."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CounterRNG:
    """Uniform numbers as a function of (seed, call, index, column): the same for any number of workers.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11.
    """

    seed: int
    call: Tensor
    """() int64, number of earlier calls of the loss."""

    def uniform(self, index: Tensor, num_columns: int, *, stream: int = 0) -> Tensor:
        """(N, num_columns) float32 in [0, 1), multiples of 2**-24.

        Args:
            index: (N,) int64, rows of the anchors in the global batch, or class ids.
            num_columns: numbers per index; a number does not depend on how many columns follow it.
            stream: distinguishes several draws of one call.
        """
        columns = torch.arange(num_columns, device=index.device)
        seed = (self.seed + (1 << 63)) % (1 << 64) - (1 << 63)  # torch's seeds go up to 2**64
        state = _mix(torch.full_like(columns[:1], seed) + self.call * 0x632BE59BD9B4E019 + stream)
        bits = _mix(_mix(state + index * -0x61C8864680B583EB)[:, None] + columns)
        return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


def _mix(values: Tensor) -> Tensor:
    """The finalizer of SplitMix64 on int64 with wrap-around; Steele, Lea and Flood 2014, OOPSLA, sec. 4."""
    values = (values ^ ((values >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    values = (values ^ ((values >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return values ^ ((values >> 31) & 0x1FFFFFFFF)

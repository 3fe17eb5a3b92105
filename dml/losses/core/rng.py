"""A counter-based random number generator: a draw depends on its seed and counters, and not on who draws."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CounterRNG:
    """Uniform numbers as a function of (seed, call, index, column): the same on any number of workers.

    As the generators of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11.
    """

    seed: int
    call: Tensor
    """() int64, how many times the loss has drawn before."""

    def uniform(self, index: Tensor, num_columns: int, *, stream: int = 0) -> Tensor:
        """(N, num_columns) float32 in [0, 1), multiples of 2**-24.

        Args:
            index: (N,) int64, who draws: anchors by their rows in the global batch, or class ids.
            num_columns: how many numbers each draws; the first are the same however many follow.
            stream: tells the draws of one call apart.
        """
        columns = torch.arange(num_columns, device=index.device)
        seed = (self.seed + (1 << 63)) % (1 << 64) - (1 << 63)  # torch's own seeds reach up to 2**64
        state = _mix(torch.full_like(columns[:1], seed) + self.call * 0x632BE59BD9B4E019 + stream)
        bits = _mix(_mix(state + index * -0x61C8864680B583EB)[:, None] + columns)
        return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


def _mix(values: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap; Steele, Lea and Flood 2014, OOPSLA, sec. 4."""
    values = (values ^ ((values >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    values = (values ^ ((values >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return values ^ ((values >> 31) & 0x1FFFFFFFF)

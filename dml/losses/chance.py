"""What a loss draws: a function of its seed and the number of the call, and not of who draws."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chance:
    """Uniform numbers as a function of (seed, call, row, slot): the same for any W and when recomputed."""

    seed: int
    call: Tensor
    """() int64, how many times the loss has drawn before."""

    @classmethod
    def of_first_call(cls, like: Tensor) -> Self:
        """The chance of a loss that has not drawn yet, on the device of a tensor."""
        return cls(0, torch.zeros((), dtype=torch.int64, device=like.device))

    def uniform(self, rows: Tensor, num_slots: int, purpose: int) -> Tensor:
        """(N, num_slots) float32 in [0, 1), multiples of 2**-24.

        Args:
            rows: (N,) int64, who draws: anchors by their places in the global batch, or class ids.
            num_slots: how many numbers each draws; the first are the same however many follow.
            purpose: tells draws of one call apart.
        """
        slots = torch.arange(num_slots, device=rows.device)
        seed = (self.seed + (1 << 63)) % (1 << 64) - (1 << 63)  # torch's own seeds reach up to 2**64
        state = _mix(torch.full_like(slots[:1], seed) + self.call * 0x632BE59BD9B4E019 + purpose)
        bits = _mix(_mix(state + rows * -0x61C8864680B583EB)[:, None] + slots)
        return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


def _mix(values: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap; Steele, Lea and Flood 2014, OOPSLA, sec. 4."""
    values = (values ^ ((values >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    values = (values ^ ((values >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return values ^ ((values >> 31) & 0x1FFFFFFFF)

"""Rank, world size and device of a worker, and the distribution of items over workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


@dataclass(frozen=True)
class Worker:
    """Rank, world size and device of this process."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    local_world_size: int = 1
    """Workers on this machine, which share its cores."""

    def collect(self, items: Sequence[Item]) -> list[Item]:
        """The items of all workers in rank order; every worker must call it, and items must be picklable."""
        if self.world_size == 1:
            return list(items)
        gathered: list[list[Item]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(gathered, list(items))
        return [item for items_of_rank in gathered for item in items_of_rank]

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        """The items of this worker: every W-th."""
        yield from items[self.rank :: self.world_size]

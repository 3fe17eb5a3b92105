"""This process's place among the workers, and its share of what they do together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


@dataclass(frozen=True)
class Worker:
    """Which of how many workers this is, and where it computes."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def collect(self, items: Sequence[Item]) -> list[Item]:
        """All workers' items in rank order; every worker must call it, and the items must pickle."""
        if self.world_size == 1:
            return list(items)
        everybody: list[list[Item]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(everybody, list(items))
        return [item for part in everybody for item in part]

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        """This worker's items: every W-th."""
        yield from items[self.rank :: self.world_size]

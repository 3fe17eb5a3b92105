"""Rows of one value per class, cut over workers, and the collectives that make one loss of their parts.

Every rank computes the whole loss of the global batch, its own classes' part by itself and the rest through
these collectives. What is combined is the same on every rank, so a rank's backward is local: its part's
gradient is the whole's times the part's derivative. Its shard then has its exact gradient, which nobody may
average; the embeddings have the share that came through this shard, and `of_all_shards` prepares them for
being summed by the gather's backward and averaged by data parallelism.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Shard:
    """Which of N rows a rank holds: ceil(N / W), in rank order; the last ranks may hold fewer, or none."""

    num_rows: int
    rank: int = 0
    world_size: int = 1

    @classmethod
    def here(cls, num_rows: int) -> Self:
        """This rank's in the default group; all rows without one."""
        if not dist.is_initialized():
            return cls(num_rows)
        return cls(num_rows, dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> int:
        """The first row; behind the last one of a rank that holds none."""
        return self._start(self.rank)

    @property
    def last(self) -> int:
        """One behind the last row."""
        return self._start(self.rank + 1)

    def __len__(self) -> int:
        return self.last - self.first

    def of(self, rank: int) -> "Shard":
        """Another rank's shard of the same rows."""
        return Shard(self.num_rows, rank, self.world_size)

    def _start(self, rank: int) -> int:
        return min(rank * -(-self.num_rows // self.world_size), self.num_rows)


def recut(rows: Tensor, old: Shard, new: Shard) -> Tensor:
    """The rows of another cut that the old one has, wherever they are now; rows it has not are zero.

    Args:
        rows: (len(old), ...) this rank's rows of the old cut.
        old: the cut they follow, over the ranks of the default group.
        new: of the same ranks, with another number of rows.

    Returns:
        (len(new), ...). One old shard at a time is held beside it; every rank must call this.
    """
    found = rows.new_zeros(len(new), *rows.shape[1:])
    for source in map(old.of, range(old.world_size)):
        part = rows.contiguous() if source == old else rows.new_empty(len(source), *rows.shape[1:])
        if old.world_size > 1 and len(source):
            dist.broadcast(part, source.rank)
        first, last = max(source.first, new.first), min(source.last, new.last)
        if first < last:
            found[first - new.first : last - new.first] = part[first - source.first : last - source.first]
    return found


def of_all_shards(embeddings: Tensor, world_size: int) -> Tensor:
    """The global batch as every shard's input: the gradient is W times as large, as it will be averaged."""
    if world_size == 1:
        return embeddings
    scaled: Tensor = _ScaleGradient.apply(embeddings, world_size)
    return scaled


def sum_over_shards(part: Tensor, world_size: int) -> Tensor:
    """The sum of all ranks' parts, the same on every rank."""
    if world_size == 1:
        return part
    total: Tensor = _SumOverShards.apply(part)
    return total


def combine_contests(target: Tensor, rivals: Tensor, world_size: int) -> tuple[Tensor, Tensor]:
    """Target and rivals over all classes from those over each shard's; two collectives.

    Args:
        target: (B,) logit of the own class, 0 on ranks that do not hold it.
        rivals: (B,) log sum exp of the other classes' logits, -inf where the shard has none.
        world_size: ranks with a shard.
    """
    if world_size == 1:
        return target, rivals
    combined: tuple[Tensor, Tensor] = _CombineContests.apply(target, rivals)
    return combined


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class _SumOverShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _CombineContests(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor]:
        peak = rivals.clone()
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        shift = torch.where(peak.isfinite(), peak, 0.0)
        sums = torch.stack([target, (rivals - shift).exp()])
        dist.all_reduce(sums)
        total = sums[1].log() + shift
        ctx.save_for_backward((rivals - shift).exp() / torch.where(sums[1] > 0, sums[1], 1.0))
        return sums[0], total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_target: Tensor, of_rivals: Tensor) -> tuple[Tensor, Tensor]:
        (share,) = ctx.saved_tensors
        return of_target, of_rivals * share

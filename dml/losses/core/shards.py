"""Sharding of per-class parameters over ranks, and the collectives that combine the shards into one loss.

Every rank computes the loss of the global batch: it computes the terms of its own classes and gets the others
through these collectives. The combined values are equal on all ranks, so backward needs no communication. The
gradient of a shard is then exact and must not be averaged over ranks. The gradient of the embeddings is only
the part through this shard; the gather's backward sums these parts and DistributedDataParallel averages them,
so `for_all_shards` multiplies by the number of ranks.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Shard:
    """The rows of N that a rank holds: ceil(N / W) in rank order; the last ranks may hold fewer or none."""

    num_rows: int
    rank: int = 0
    world_size: int = 1

    @classmethod
    def of_this_rank(cls, num_rows: int) -> Self:
        """The shard of this rank in the default process group; all rows if there is no group."""
        if not dist.is_initialized():
            return cls(num_rows)
        return cls(num_rows, dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> int:
        """The first row; N for a rank without rows."""
        return self._start(self.rank)

    @property
    def last(self) -> int:
        """The last row, exclusive."""
        return self._start(self.rank + 1)

    def __len__(self) -> int:
        return self.last - self.first

    def of_rank(self, rank: int) -> "Shard":
        """The shard of another rank of the same rows."""
        return Shard(self.num_rows, rank, self.world_size)

    def _start(self, rank: int) -> int:
        return min(rank * -(-self.num_rows // self.world_size), self.num_rows)


def reshard(rows: Tensor, old: Shard, new: Shard) -> Tensor:
    """The rows of this rank in a new sharding, received from the ranks that hold them; new rows are zero.

    Every rank must call it. One old shard at a time is held in memory.

    Args:
        rows: (len(old), ...) the rows of this rank in the old sharding.
        old: current sharding over the ranks of the default group.
        new: sharding over the same ranks with another number of rows.

    Returns:
        (len(new), ...).
    """
    resharded = rows.new_zeros(len(new), *rows.shape[1:])
    for source in map(old.of_rank, range(old.world_size)):
        part = rows.contiguous() if source == old else rows.new_empty(len(source), *rows.shape[1:])
        if old.world_size > 1 and len(source):
            dist.broadcast(part, source.rank)
        first, last = max(source.first, new.first), min(source.last, new.last)
        if first < last:
            resharded[first - new.first : last - new.first] = part[first - source.first : last - source.first]
    return resharded


def for_all_shards(embeddings: Tensor, world_size: int) -> Tensor:
    """The global batch as input of a shard; its gradient is multiplied by W because it is averaged later."""
    if world_size == 1:
        return embeddings
    scaled: Tensor = _ScaleGradient.apply(embeddings, world_size)
    return scaled


def sum_over_shards(part: Tensor, world_size: int) -> Tensor:
    """The sum over ranks, equal on every rank; the gradient of `part` is that of the sum."""
    if world_size == 1:
        return part
    total: Tensor = _SumOverShards.apply(part)
    return total


def combine_lse(target_logit: Tensor, others_lse: Tensor, world_size: int) -> tuple[Tensor, Tensor]:
    """The target logit and log-sum-exp over all classes, from those of each shard; two collectives.

    Args:
        target_logit: (B,) logit to the anchor's class, 0 on ranks that do not hold this class.
        others_lse: (B,) log-sum-exp of the logits to the other classes of this shard, -inf if it has none.
        world_size: number of shards.
    """
    if world_size == 1:
        return target_logit, others_lse
    combined: tuple[Tensor, Tensor] = _CombineLSE.apply(target_logit, others_lse)
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


class _CombineLSE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target_logit: Tensor, others_lse: Tensor) -> tuple[Tensor, Tensor]:
        peak = others_lse.clone()
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        shift = torch.where(peak.isfinite(), peak, 0.0)
        sums = torch.stack([target_logit, (others_lse - shift).exp()])
        dist.all_reduce(sums)
        total = sums[1].log() + shift
        ctx.save_for_backward((others_lse - shift).exp() / torch.where(sums[1] > 0, sums[1], 1.0))
        return sums[0], total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_target_logit: Tensor, grad_others_lse: Tensor) -> tuple[Tensor, Tensor]:
        (share,) = ctx.saved_tensors
        return grad_target_logit, grad_others_lse * share

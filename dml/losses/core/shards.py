"""Rows of one value per class, sharded over workers, and the collectives that make one loss of their parts.

Every rank computes the whole loss of the global batch, its own classes' part by itself and the rest through
these collectives. What is combined is the same on every rank, so a rank's backward is local: its part's
gradient is the whole's times the part's derivative. Its shard then has its exact gradient, which nobody may
average; the embeddings have the share that came through this shard, and `for_all_shards` prepares them for
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


def reshard(rows: Tensor, old: Shard, new: Shard) -> Tensor:
    """This rank's rows of another sharding, from the ranks that hold them; those of none are zero.

    Args:
        rows: (len(old), ...) this rank's rows of the old sharding.
        old: how they are sharded now, over the ranks of the default group.
        new: over the same ranks, with another number of rows.

    Returns:
        (len(new), ...). One old shard at a time is held beside it; every rank must call this.
    """
    resharded = rows.new_zeros(len(new), *rows.shape[1:])
    for source in map(old.of, range(old.world_size)):
        part = rows.contiguous() if source == old else rows.new_empty(len(source), *rows.shape[1:])
        if old.world_size > 1 and len(source):
            dist.broadcast(part, source.rank)
        first, last = max(source.first, new.first), min(source.last, new.last)
        if first < last:
            resharded[first - new.first : last - new.first] = part[first - source.first : last - source.first]
    return resharded


def for_all_shards(embeddings: Tensor, world_size: int) -> Tensor:
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


def combine_lse(target_logit: Tensor, others_lse: Tensor, world_size: int) -> tuple[Tensor, Tensor]:
    """Target logit and others' LSE over all classes from those over each shard's; two collectives.

    Args:
        target_logit: (B,) logit to the own class, 0 on ranks that do not hold it.
        others_lse: (B,) log sum exp of the logits to the other classes, -inf where the shard has none.
        world_size: ranks with a shard.
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

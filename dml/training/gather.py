"""Every worker's embeddings for every worker, with gradients that go back to where each row came from."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dml.losses.references import References


class _AllGather(torch.autograd.Function):
    """(b, D) on each rank to (W * b, D) on all; backward sums what all ranks want of one's rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather(embeddings: Tensor, labels: Tensor) -> References:
    """The global batch of the default process group; the batch itself where there is one worker.

    Args:
        embeddings: (b, D) float, unit length; b must be equal on all ranks.
        labels: (b,) int64.

    Returns:
        References in rank order. A rank's rows receive the sum over ranks of their gradients, so that after
        data parallelism's mean the gradient is that of one worker on the whole batch.

    Raises:
        ValueError: the ranks' batches differ in size.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return References.of_batch(embeddings, labels)
    world_size, size = dist.get_world_size(), len(labels)
    sizes = torch.tensor([size, -size], device=labels.device)
    dist.all_reduce(sizes, op=dist.ReduceOp.MAX)
    if sizes[0] != -sizes[1]:
        raise ValueError(
            f"All ranks must bring equally many rows; they bring {int(-sizes[1])} to {int(sizes[0])}. "
            "Drop the last, smaller batch, or use the P x K sampler."
        )
    all_labels = [torch.empty_like(labels) for _ in range(world_size)]
    dist.all_gather(all_labels, labels.contiguous())
    gathered: Tensor = _AllGather.apply(embeddings)
    return References(gathered, torch.cat(all_labels), dist.get_rank() * size, _mean_over_ranks)


def _mean_over_ranks(value: Tensor) -> Tensor:
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()

"""One optimiser step on a batch whose activations need not fit in memory: the cached-gradient step.

The batch is embedded in chunks without a graph; the loss sees all embeddings of all workers at once; its
gradient at the embeddings is then carried back chunk by chunk. Gao et al. 2021, arXiv:2101.06983, sec. 3.2.
It costs a second forward pass, and holds the activations of one chunk instead of the batch's.

It is the plain step's gradient but for what a chunk's forward pass takes from beyond its own rows:
- Dropout draws anew for every chunk; the second pass draws what the first drew.
- A frozen batch norm takes nothing, so it is exact. One that trains is a ghost batch norm: see there.
"""

from collections.abc import Container
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from dml.losses import sharded_parameters
from dml.training.ghost_batch_norm import ChunkStatistics
from dml.training.optimizer import clip_gradients
from dml.training.step import Learner


def cached_train_step(
    learner: Learner,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    chunk_rows: int,
    clip_norm: float | None,
) -> Tensor:
    """`train_step` in chunks; returns the loss of the global batch, a scalar equal on every worker.

    The loss is called once. On W workers, beside the collectives of gather and loss, there is one: gradients,
    running statistics and the loss's value travel together.

    Args:
        learner: not wrapped in DistributedDataParallel, which would synchronise every chunk.
        optimizer: of the learner's parameters.
        images: (b, c, H, W) float32, this worker's share; equally many rows on every worker.
        labels: (b,) int64 class ids.
        chunk_rows: images embedded at a time, >= 1; the last chunk may be smaller.
        clip_norm: None: gradients are not clipped.
    """
    optimizer.zero_grad(set_to_none=True)
    shards = sharded_parameters(learner)
    chunks = torch.split(images, chunk_rows)
    with ChunkStatistics(learner.encoder) as statistics:
        draws, parts = [], []
        with torch.no_grad():
            for chunk in chunks:
                draws.append(_RandomState.of(images.device))
                parts.append(learner.embed(chunk))
        embeddings = torch.cat(parts).requires_grad_()
        loss = learner.loss_of(embeddings, labels)
        torch.autograd.backward(loss)
        assert embeddings.grad is not None
        after = _RandomState.of(images.device)
        statistics.collect()
        parts_of_gradient = torch.split(embeddings.grad, chunk_rows)
        for number, (chunk, draw, gradient) in enumerate(zip(chunks, draws, parts_of_gradient, strict=True)):
            statistics.begin_chunk(number)
            draw.restore()
            torch.autograd.backward(learner.embed(chunk), gradient)
        after.restore()
        value = loss.detach().clone()
        _average_over_ranks([value, *statistics.tensors, *_gradients(learner, shards)])
    clip_gradients(optimizer, clip_norm, shards)
    optimizer.step()
    return value


class _RandomState:
    """Where torch's generators stand, on the CPU and the device that embeds."""

    def __init__(self, device: torch.device, cpu: Tensor, cuda: Tensor | None) -> None:
        self.device, self.cpu, self.cuda = device, cpu, cuda

    @classmethod
    def of(cls, device: torch.device) -> Self:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


def _gradients(module: nn.Module, shards: Container[nn.Parameter]) -> list[Tensor]:
    """Every common parameter's gradient; zero where this rank has none, as ranks must agree on their number.

    A shard's gradient is no common one: it is whole, and of rows that no other rank has.
    """
    parameters = [p for p in module.parameters() if p.requires_grad and p not in shards]
    if dist.is_initialized() and dist.get_world_size() > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _average_over_ranks(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over ranks, in one collective, in the widest type among them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

"""Cached-gradient step: one optimizer step on a batch whose activations do not fit into memory.

The batch is embedded in chunks without a graph. The loss is computed from all embeddings of all workers. Its
gradient with respect to the embeddings is then propagated chunk by chunk. Gao et al. 2021, arXiv:2101.06983,
sec. 3.2. It needs a second forward pass, and memory for the activations of one chunk instead of the batch.

The gradient equals that of the plain step, except for layers that depend on other rows of the batch:
- Dropout: the second pass uses the same random numbers as the first.
- Batch norm: exact if frozen. A training one becomes a ghost batch norm, see `ghost_batch_norm`.
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
    """`train_step` in chunks; returns the loss of the global batch, equal on every worker.

    The loss is called once. On W workers there is one collective in addition to those of gather and loss: it
    averages gradients, running statistics and the loss value together.

    Args:
        learner: not wrapped in DistributedDataParallel, which would synchronize after every chunk.
        optimizer: optimizer of the parameters of the learner.
        images: (b, c, H, W) float32, the images of this worker; the same number on every worker.
        labels: (b,) int64 class ids.
        chunk_rows: images per chunk, >= 1; the last chunk may be smaller.
        clip_norm: maximum gradient norm; None: no clipping.
    """
    optimizer.zero_grad()
    shards = sharded_parameters(learner)
    chunks = torch.split(images, chunk_rows)
    with ChunkStatistics(learner.encoder) as statistics:
        states, chunk_embeddings = [], []
        with torch.no_grad():
            for chunk in chunks:
                states.append(_RandomState.current(images.device))
                chunk_embeddings.append(learner.embed(chunk))
        embeddings = torch.cat(chunk_embeddings).requires_grad_()
        loss = learner.compute_loss(embeddings, labels)
        torch.autograd.backward(loss)
        assert embeddings.grad is not None
        after = _RandomState.current(images.device)
        statistics.collect()
        gradients = torch.split(embeddings.grad, chunk_rows)
        for number, (chunk, state, gradient) in enumerate(zip(chunks, states, gradients, strict=True)):
            statistics.begin_chunk(number)
            state.restore()
            torch.autograd.backward(learner.embed(chunk), gradient)
        after.restore()
        value = loss.detach().clone()
        _average_over_ranks([value, *statistics.tensors, *_gradients(learner, shards)])
    clip_gradients(optimizer, clip_norm, shards)
    optimizer.step()
    return value


class _RandomState:
    """State of torch's random generators on the CPU and on the device of the encoder."""

    def __init__(self, device: torch.device, cpu: Tensor, cuda: Tensor | None) -> None:
        self.device, self.cpu, self.cuda = device, cpu, cuda

    @classmethod
    def current(cls, device: torch.device) -> Self:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


def _gradients(module: nn.Module, shards: Container[nn.Parameter]) -> list[Tensor]:
    """Gradients of all parameters that are not sharded; zero if this rank has none, so that ranks match.

    The gradient of a shard is complete on its rank and must not be averaged.
    """
    parameters = [p for p in module.parameters() if p.requires_grad and p not in shards]
    if dist.is_initialized() and dist.get_world_size() > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _average_over_ranks(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over ranks, in one collective and in the widest type of the tensors."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

"""The global batch on every worker, with gradients flowing back to the worker each row came from."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dml.losses import References


def gather(embeddings: Tensor, labels: Tensor, *, equal_rows: bool = False) -> References:
    """All workers' rows in rank order, as references for this worker's anchors.

    Two collectives forward, one backward, over the default group; without one, or alone, the batch itself.

    Args:
        embeddings: (B, D) float, equally many rows on every rank.
        labels: (B,) int64 class ids.
        equal_rows: the caller knows that all ranks hold equally many; the check, for which the host would
            wait for a GPU, is left out, and forward is one collective.

    Raises:
        ValueError: the ranks hold different numbers of rows; raised on every rank.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return References(embeddings, labels)
    labels = labels.to(torch.int64)
    if not equal_rows:
        _check_equal_rows(len(labels), labels.device)
    all_embeddings, all_labels = _GatherRows.apply(embeddings, labels)
    return References(
        embeddings=all_embeddings,
        labels=all_labels,
        first_row=dist.get_rank() * len(labels),
        mean_over_ranks=mean_over_ranks,
    )


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over all workers, without gradient; every worker must call it."""
    value = value.detach().clone()
    if not dist.is_initialized():
        return value
    dist.all_reduce(value)
    return value / dist.get_world_size()


def _check_equal_rows(num_rows: int, device: torch.device) -> None:
    counts = _gather_rows(torch.tensor([num_rows], device=device)).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f"Every rank must hold equally many rows; got {counts} in rank order. Use a batch sampler that "
            "gives each rank an equal share, and drop the last incomplete batch."
        )


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        ctx.num_rows = len(embeddings)
        # As bytes both travel in one collective, whatever their types.
        parts = [part.contiguous().view(torch.uint8) for part in (embeddings, labels[:, None])]
        widths = [part.shape[1] for part in parts]
        rows, classes = torch.split(_gather_rows(torch.cat(parts, 1)), widths, 1)
        all_labels = classes.contiguous().view(labels.dtype)[:, 0]
        ctx.mark_non_differentiable(all_labels)
        return rows.contiguous().view(embeddings.dtype), all_labels

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, None]:
        """The sum over ranks of their gradients for this rank's rows."""
        own = gradient.new_empty(ctx.num_rows, gradient.shape[1])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own, None


def _gather_rows(rows: Tensor) -> Tensor:
    everybody = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(everybody, rows)
    return everybody

"""Gather the global batch on every worker, with gradients back to the worker of each row."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dml.losses import References


def gather(embeddings: Tensor, labels: Tensor, *, equal_rows: bool = False) -> References:
    """The rows of all workers in rank order, as references for the anchors of this worker.

    Two collectives in forward and one in backward, over the default group. Without a group, or with one
    worker, it returns the batch itself.

    Args:
        embeddings: (B, D) float, with the same number of rows on every rank.
        labels: (B,) int64 class ids.
        equal_rows: whether the caller guarantees equal numbers of rows. Skips the check, which would
            synchronize with a GPU; forward is then one collective.

    Raises:
        ValueError: the ranks have different numbers of rows; raised on every rank.
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
            f"Every rank must have the same number of rows; got {counts} in rank order. Use a batch sampler "
            "that splits batches equally, and drop the last incomplete batch."
        )


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        ctx.num_rows = len(embeddings)
        # As bytes, both fit in one collective for any types.
        columns = [values.contiguous().view(torch.uint8) for values in (embeddings, labels[:, None])]
        widths = [column.shape[1] for column in columns]
        rows, classes = torch.split(_gather_rows(torch.cat(columns, 1)), widths, 1)
        all_labels = classes.contiguous().view(labels.dtype)[:, 0]
        ctx.mark_non_differentiable(all_labels)
        return rows.contiguous().view(embeddings.dtype), all_labels

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, None]:
        """The sum over ranks of the gradients for the rows of this rank."""
        local = gradient.new_empty(ctx.num_rows, gradient.shape[1])
        dist.reduce_scatter_tensor(local, gradient.contiguous())
        return local, None


def _gather_rows(rows: Tensor) -> Tensor:
    gathered = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows)
    return gathered

"""The global batch as one worker sees it: whom its own rows are compared with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def _of_one_worker(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class References:
    """All workers' rows, in rank order, so that a loss of local anchors against them is exact on W workers.

    The contract every loss keeps: with L_r computed on rank r, the mean of L_r over the ranks is the loss of the
    one big batch, in value and in gradient. A sum over local anchors is therefore divided by the *mean over
    ranks* of the local counts; nobody multiplies by W.
    """

    embeddings: Tensor
    """(W * b, D), unit length; gradients flow back to every rank."""
    labels: Tensor
    """(W * b,) int64."""
    first_row: int = 0
    """Where the local anchors begin among the references."""
    mean_over_ranks: Callable[[Tensor], Tensor] = _of_one_worker
    """The mean of a tensor over the ranks, without gradient."""

    @classmethod
    def of_batch(cls, embeddings: Tensor, labels: Tensor) -> "References":
        """One worker's batch is its own global batch.

        Raises:
            ValueError: embeddings and labels differ in length, or are no matrix and vector.
        """
        if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"embeddings must be (B, D) and labels (B,); got {tuple(embeddings.shape)} and "
                f"{tuple(labels.shape)}."
            )
        return cls(embeddings, labels)

    def pairs(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (b, W * b) of the positives and the negatives of local anchors with these labels (b,).

        An anchor is never its own positive: itself is left out by its place, not by its distance, so that
        duplicates of it count.
        """
        same = labels[:, None] == self.labels[None, :]
        negatives = ~same
        rows = torch.arange(len(labels), device=labels.device)
        same[rows, rows + self.first_row] = False
        return same, negatives

    def mean_count(self, count: Tensor) -> Tensor:
        """The mean over ranks of a count, never 0: what a local sum is divided by."""
        mean = self.mean_over_ranks(count.detach().float())
        return torch.where(mean > 0, mean, torch.ones_like(mean))

    def share_of(self, num_items: int, num_anchors: int) -> slice:
        """This rank's consecutive share of items that every rank holds, such as proxies.

        Args:
            num_items: to be shared among the ranks.
            num_anchors: b, this rank's rows.
        """
        world_size = len(self.labels) // num_anchors
        rank = self.first_row // num_anchors
        return slice(num_items * rank // world_size, num_items * (rank + 1) // world_size)

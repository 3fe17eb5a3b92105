"""What anchors are compared with: the global batch, of which a worker may hold only its own rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


def single_rank(value: Tensor) -> Tensor:
    """The mean over the ranks of one worker."""
    return value


@dataclass(frozen=True)
class References:
    """The global batch of W workers: in rank order, and gradient flows to every rank.

    Each rank computes the loss of its own anchors against all references such that the mean over ranks is the
    loss of the global batch; averaging gradients over ranks is then exact, and nobody multiplies by W.
    """

    embeddings: Tensor
    """(W*B, D) float, unit length."""
    labels: Tensor
    """(W*B,) int64 class ids."""
    first_row: int = 0
    """Row of this rank's first anchor in the global batch."""
    contain_anchors: bool = True
    """Whether all ranks' anchors are the references; False: they are other samples, e.g. a memory bank."""
    mean_over_ranks: Callable[[Tensor], Tensor] = single_rank
    """Averages a tensor over ranks, without gradient; every rank must call it equally often."""

    @classmethod
    def of(cls, embeddings: Tensor, labels: Tensor, given: Self | None) -> Self:
        """The given references, else the batch itself.

        Raises:
            ValueError: no batch, or embeddings and labels, or the given references, do not fit together.
        """
        _check_batch(embeddings, labels, "")
        if given is None:
            return cls(embeddings, labels.contiguous())
        if given.embeddings is not embeddings:
            _check_batch(given.embeddings, given.labels, "references' ")
            if given.embeddings.shape[1] != embeddings.shape[1]:
                raise ValueError(
                    f"embeddings and references must be equally long vectors; got D = {embeddings.shape[1]} "
                    f"and {given.embeddings.shape[1]}. Embed both with one model."
                )
        if given.contain_anchors and given.first_row + len(labels) > len(given.labels):
            raise ValueError(
                f"references must contain the anchors; got {len(labels)} anchors at row {given.first_row} of "
                f"{len(given.labels)}. Build them with dml.training.gather.gather."
            )
        return given if given.labels.is_contiguous() else replace(given, labels=given.labels.contiguous())

    def with_anchors(self, loss: str) -> Self:
        """These references, for a loss whose tuples lie within the batch.

        Raises:
            ValueError: they do not contain the anchors, e.g. those of a memory bank.
        """
        if not self.contain_anchors:
            raise ValueError(
                f"{loss} learns within the batch, so the anchors must be among the references; got others, "
                "such as a memory's. Use it without the memory, or another loss with it."
            )
        return self

    def average(self, total: Tensor, count: Tensor) -> Tensor:
        """`total / count` where both are summed over ranks first, as this rank's part of a mean over ranks.

        0 with zero gradient where nothing is counted. The count carries no gradient.
        """
        count = self.mean_over_ranks(count.detach().to(total.dtype))
        return total / torch.where(count > 0, count, torch.ones_like(count))


def _check_batch(embeddings: Tensor, labels: Tensor, prefix: str) -> None:
    """Raise ValueError for what are not embeddings (B, D) with labels (B,), B > 0."""
    given: dict[str, object] = {"embeddings": embeddings, "labels": labels}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            wanted = "int64" if name == "labels" else "float"
            kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
            raise ValueError(
                f"{prefix}{name} must be a torch {wanted} tensor; got {kind}. Pass torch.as_tensor({name})."
            )
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{prefix}embeddings must be (B, D) and labels (B,); got {tuple(embeddings.shape)} and "
            f"{tuple(labels.shape)}. Pass one label for each row."
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"{prefix}labels must be int64 class ids; got {labels.dtype}. Pass labels.long().")
    if not embeddings.is_floating_point():
        raise ValueError(
            f"{prefix}embeddings must be floating point; got {embeddings.dtype}. Pass embeddings.float()."
        )
    if labels.device != embeddings.device:
        raise ValueError(
            f"{prefix}embeddings and labels must be on one device; got {embeddings.device} and "
            f"{labels.device}. Pass labels.to(embeddings.device)."
        )
    if not embeddings.shape[1]:
        raise ValueError(
            f"{prefix}embeddings must be (B, D) with D of 1 or more; got {tuple(embeddings.shape)}. Look at "
            "what made them."
        )
    if embeddings.layout != torch.strided:
        raise ValueError(
            f"{prefix}embeddings must be dense; got {embeddings.layout}. Pass embeddings.to_dense()."
        )
    if not len(labels):
        raise ValueError("A batch must hold one image or more; got none. Leave out a step without images.")


def check_class_ids(labels: Tensor, num_classes: int, noun: str) -> Tensor:
    """Labels, (B,) int64 with B > 0, must be in [0, C): each class has one proxy, or what the noun says.

    Returns:
        () float32, 0. Labels on another device than the CPU are not waited for: NaN where one is outside.

    Raises:
        ValueError: a label outside, on the CPU.
    """
    least, most = labels.aminmax()
    if labels.device.type != "cpu":
        return torch.where((least >= 0) & (most < num_classes), 0.0, torch.nan)
    if least < 0 or most >= num_classes:
        raise ValueError(
            f"labels must be class ids in [0, {num_classes}), one {noun} each; got {int(least)} to "
            f"{int(most)}. Number the training classes from 0, or give num_classes."
        )
    return torch.zeros(())

"""References: the samples that anchors are compared with, usually the global batch of all workers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


def single_rank(value: Tensor) -> Tensor:
    """The mean over ranks if there is one rank."""
    return value


@dataclass(frozen=True)
class References:
    """The global batch of W workers in rank order; gradients flow back to every rank.

    Each rank computes the loss of its own anchors against all references, scaled so that the mean over ranks
    is the loss of the global batch. Averaging gradients over ranks is then exact; do not multiply by W.
    """

    embeddings: Tensor
    """(W*B, D) float, unit length."""
    labels: Tensor
    """(W*B,) int64 class ids."""
    first_row: int = 0
    """Row of this rank's first anchor in the global batch."""
    contain_anchors: bool = True
    """Whether the references are the anchors of all ranks; False: other samples, e.g. a memory bank."""
    mean_over_ranks: Callable[[Tensor], Tensor] = single_rank
    """Averages a tensor over ranks, without gradient; every rank must call it the same number of times."""

    @classmethod
    def check(cls, embeddings: Tensor, labels: Tensor, references: Self | None) -> Self:
        """The checked references of a batch; the batch itself if `references` is None.

        Raises:
            ValueError: embeddings and labels, or the references, are not a batch or do not match.
        """
        _check_batch(embeddings, labels, "")
        if references is None:
            return cls(embeddings, labels.contiguous())
        if references.embeddings is not embeddings:
            _check_batch(references.embeddings, references.labels, "references' ")
            if references.embeddings.shape[1] != embeddings.shape[1]:
                raise ValueError(
                    "embeddings and references must have vectors of the same length; got "
                    f"D = {embeddings.shape[1]} and {references.embeddings.shape[1]}. Embed both with one "
                    "model."
                )
        if references.contain_anchors and references.first_row + len(labels) > len(references.labels):
            raise ValueError(
                f"references must contain the anchors; got {len(labels)} anchors at row "
                f"{references.first_row} of {len(references.labels)}. Build them with "
                "dml.training.gather.gather."
            )
        if references.labels.is_contiguous():
            return references
        return replace(references, labels=references.labels.contiguous())

    def with_anchors(self, loss: str) -> Self:
        """These references, for a loss that needs the anchors among them.

        Raises:
            ValueError: they do not contain the anchors, e.g. those of a memory bank.
        """
        if not self.contain_anchors:
            raise ValueError(
                f"{loss} uses pairs within the batch, so the anchors must be among the references; got other "
                "samples, such as a memory bank. Use this loss without a memory bank, or choose another loss."
            )
        return self

    def average(self, total: Tensor, count: Tensor) -> Tensor:
        """`total / count` of the sums over ranks, scaled so that the mean over ranks gives it.

        0 with zero gradient if the count is 0. The count has no gradient.
        """
        count = self.mean_over_ranks(count.detach().to(total.dtype))
        return total / torch.where(count > 0, count, torch.ones_like(count))


def _check_batch(embeddings: Tensor, labels: Tensor, prefix: str) -> None:
    """Raise ValueError unless these are embeddings (B, D) with labels (B,), B > 0."""
    arguments: dict[str, object] = {"embeddings": embeddings, "labels": labels}
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            dtype = "int64" if name == "labels" else "float"
            kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
            raise ValueError(
                f"{prefix}{name} must be a torch {dtype} tensor; got {kind}. Pass torch.as_tensor({name})."
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
            f"{prefix}embeddings must be (B, D) with D of 1 or more; got {tuple(embeddings.shape)}. Check "
            "the output of your model."
        )
    if embeddings.layout != torch.strided:
        raise ValueError(
            f"{prefix}embeddings must be dense; got {embeddings.layout}. Pass embeddings.to_dense()."
        )
    if not len(labels):
        raise ValueError("A batch must have at least one image; got none. Skip steps without images.")


def check_class_ids(labels: Tensor, num_classes: int, noun: str) -> Tensor:
    """Check that labels, (B,) int64 with B > 0, are class ids in [0, C).

    Args:
        labels: (B,) int64.
        num_classes: C.
        noun: what each class has, such as "proxy"; for the message.

    Returns:
        () float32, 0. On a GPU NaN if a label is outside, because an error would need a synchronization.

    Raises:
        ValueError: a label is outside, on the CPU.
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

"""Every loss of embeddings: checks the batch, gives its rows unit length, lets NaN through."""

from dataclasses import replace
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

from dml.arguments import check_arguments
from dml.losses.core.references import References
from dml.similarity import unit_length, without_autocast


class Loss(Protocol):
    """What a training loop calls: ours, and any of your own."""

    def __call__(self, embeddings: Tensor, labels: Tensor, references: References | None = None, /) -> Tensor:
        """This worker's part of the loss, a scalar: the mean over workers is the loss of the global batch."""


class LossOptions(TypedDict, total=False):
    """The arguments of every loss; `EmbeddingLoss` documents them."""

    normalize: bool


@check_arguments
class EmbeddingLoss(nn.Module):
    """A loss of labelled embeddings; subclasses compute it in `compute_loss`.

    Args:
        normalize: divides embeddings and references by their length first, with the exact gradient. False
            where they have length 1 already, as those of `dml.models.encoder.Encoder`: it saves two passes
            over them. Not checked: of other lengths the loss is another function.
    """

    within_batch = False
    """Whether anchors must be among the references, so that a memory bank cannot serve."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            check_arguments(cls)

    def __init__(self, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        """The loss of the batch, or this rank's part of it.

        Args:
            embeddings: (B, D) float.
            labels: (B,) int64 class ids.
            references: the global batch; None: the batch itself.

        Returns:
            Scalar, float32 or float64; NaN where any embedding or reference is not finite. On a GPU, which
            is not waited for, also NaN for a label without a proxy or boundary.

        Raises:
            ValueError: embeddings and labels are no batch, do not fit the references, or on the CPU a label
                has no proxy or boundary.
        """
        batch = References.of(embeddings, labels, references)
        with without_autocast(embeddings.device):
            return self._loss_of_checked(embeddings, labels.contiguous(), batch)

    def _loss_of_checked(self, embeddings: Tensor, labels: Tensor, batch: References) -> Tensor:
        self.check_dim(embeddings.shape[1])
        if self.normalize:
            unit = unit_length(embeddings)
            is_batch = batch.embeddings is embeddings
            batch = replace(batch, embeddings=unit if is_batch else unit_length(batch.embeddings))
            embeddings = unit
        zero_or_nan = self.check_labels(labels) + _zero_if_finite(embeddings)
        if batch.embeddings is not embeddings:
            zero_or_nan = zero_or_nan + _zero_if_finite(batch.embeddings)
        # Masks can hide NaN from a loss. To look for it would wait for a GPU; adding the sum does not.
        return self.compute_loss(embeddings, labels, batch) + zero_or_nan

    def check_dim(self, dim: int) -> None:
        """Nothing; subclasses with proxies refuse embeddings (B, D) of another D here."""

    def check_labels(self, labels: Tensor) -> Tensor:
        """() 0, or NaN; subclasses whose labels must be class ids refuse others here."""
        return labels.new_zeros((), dtype=torch.float32)

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        """The loss of a checked batch, of unit vectors with `normalize`; arguments as `forward`."""
        raise NotImplementedError


@torch.no_grad()
def _zero_if_finite(embeddings: Tensor) -> Tensor:
    """() 0, or NaN."""
    # In float16 the sum of finite values may be infinite.
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    return 0.0 * embeddings.sum(dtype=dtype)

"""Base class of all losses: checks the batch, normalizes the embeddings, propagates NaN."""

from dataclasses import replace
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

from dml.arguments import check_arguments
from dml.losses.core.references import References
from dml.similarity import unit_length, without_autocast


class Loss(Protocol):
    """The interface a training loop needs: the losses of this package, or your own."""

    def __call__(self, embeddings: Tensor, labels: Tensor, references: References | None = None, /) -> Tensor:
        """A scalar for this worker; the mean over workers is the loss of the global batch."""


class LossOptions(TypedDict, total=False):
    """The arguments of every loss; `EmbeddingLoss` documents them."""

    normalize: bool


@check_arguments
class EmbeddingLoss(nn.Module):
    """A loss over labelled embeddings; subclasses compute it in `compute_loss`.

    Args:
        normalize: divide embeddings and references by their length first, with the exact gradient. Set it to
            False if they already have length 1, like those of `dml.models.encoder.Encoder`: this saves two
            passes over them. The length is not checked; with other lengths the loss has another value.
    """

    within_batch = False
    """Whether the anchors must be among the references. If so, a memory bank cannot be used."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            check_arguments(cls)

    def __init__(self, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        """The loss of the batch, or of this rank's anchors in the global batch.

        Args:
            embeddings: (B, D) float.
            labels: (B,) int64 class ids.
            references: the global batch; None: the batch itself.

        Returns:
            Scalar, float32 or float64; NaN if any embedding or reference is not finite. On a GPU also NaN if
            a label has no proxy or boundary: raising an error would need a synchronization.

        Raises:
            ValueError: embeddings and labels are not a batch, or do not match the references; on the CPU also
                if a label has no proxy or boundary.
        """
        batch = References.check(embeddings, labels, references)
        with without_autocast(embeddings.device):
            return self._normalize_and_compute(embeddings, labels.contiguous(), batch)

    def _normalize_and_compute(self, embeddings: Tensor, labels: Tensor, batch: References) -> Tensor:
        self.check_dim(embeddings.shape[1])
        if self.normalize:
            unit = unit_length(embeddings)
            is_batch = batch.embeddings is embeddings
            batch = replace(batch, embeddings=unit if is_batch else unit_length(batch.embeddings))
            embeddings = unit
        zero_or_nan = self.check_labels(labels) + _zero_if_finite(embeddings)
        if batch.embeddings is not embeddings:
            zero_or_nan = zero_or_nan + _zero_if_finite(batch.embeddings)
        # Masks can hide NaN from a loss. A test for NaN would synchronize with the GPU; adding 0 * sum does
        # not.
        return self.compute_loss(embeddings, labels, batch) + zero_or_nan

    def check_dim(self, dim: int) -> None:
        """Subclasses with proxies raise ValueError here if D does not match; the default accepts every D."""

    def check_labels(self, labels: Tensor) -> Tensor:
        """() 0, or NaN. Subclasses check here that labels are class ids; the default accepts all labels."""
        return labels.new_zeros((), dtype=torch.float32)

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        """The loss of a checked batch, normalized if `normalize` is set; arguments as in `forward`."""
        raise NotImplementedError


@torch.no_grad()
def _zero_if_finite(embeddings: Tensor) -> Tensor:
    """() 0 if all values are finite, else NaN."""
    # In float16 the sum of finite values can overflow.
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    return 0.0 * embeddings.sum(dtype=dtype)

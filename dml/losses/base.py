"""What every loss of embeddings does alike: checks the batch, gives its rows unit length, shows NaN."""

from dataclasses import replace
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from dml.losses.arguments import check_arguments
from dml.losses.references import References
from dml.similarity import unit_length, without_autocast


class LossOptions(TypedDict, total=False):
    """What every loss can be told beside its own settings; `EmbeddingLoss` says what it means."""

    normalize: bool


@check_arguments
class EmbeddingLoss(nn.Module):
    """A loss of labelled embeddings; subclasses say how in `compute_loss`.

    Args:
        normalize: divides embeddings and references by their length first, with the exact gradient. False
            where they have length 1 already, as those of `dml.models.encoder.Encoder`: it saves two passes
            over them. Not looked at further: of other lengths the loss is then another function.
    """

    within_batch = False
    """Whether anchors must be among the references, so that a memory's cannot serve."""

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
            Scalar, float32 or float64; NaN where any embedding or reference is not finite. So it is on a GPU,
            which is not waited for, with a label that has no proxy or boundary.

        Raises:
            ValueError: embeddings and labels are no batch, do not fit the references, or on the CPU a label
                has no proxy or boundary.
        """
        batch = References.of(embeddings, labels, references)
        with without_autocast(embeddings.device):
            return self._loss_of(embeddings, labels.contiguous(), batch)

    def _loss_of(self, embeddings: Tensor, labels: Tensor, batch: References) -> Tensor:
        self.check_dim(embeddings.shape[1])
        if self.normalize:
            rows = unit_length(embeddings)
            is_own = batch.embeddings is embeddings
            batch = replace(batch, embeddings=rows if is_own else unit_length(batch.embeddings))
            embeddings = rows
        zero_or_nan = self.check_labels(labels) + _zero_if_finite(embeddings)
        if batch.embeddings is not embeddings:
            zero_or_nan = zero_or_nan + _zero_if_finite(batch.embeddings)
        # Masks can hide from a loss what is no number. To ask would wait for a GPU; a sum has it in itself.
        return self.compute_loss(embeddings, labels, batch) + zero_or_nan

    def check_dim(self, dim: int) -> None:
        """Nothing; subclasses with proxies refuse embeddings (B, D) of another D here."""

    def check_labels(self, labels: Tensor) -> Tensor:
        """() 0, or NaN; subclasses whose labels must be class ids refuse others here."""
        return labels.new_zeros((), dtype=torch.float32)

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        """The loss of a checked batch, of unit rows with `normalize`; arguments as `forward`."""
        raise NotImplementedError


@torch.no_grad()
def _zero_if_finite(embeddings: Tensor) -> Tensor:
    """() 0, or NaN."""
    # In float16 the sum of finite values may be infinite.
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    return 0.0 * embeddings.sum(dtype=dtype)

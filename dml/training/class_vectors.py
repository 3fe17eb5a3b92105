"""Class vectors of a training run (proxies or running means), for samplers of similar classes."""

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from dml.losses import References


class WithClassVectors(nn.Module):
    """A loss with one vector per class: the proxies of the loss if it has them, else running means.

    The sampler uses `frozen` (C, D) until the next `freeze`. It is a buffer, like the means, and therefore in
    every checkpoint: a resumed run samples the same batches. (Ge et al. 2018, arXiv:1810.06951, recompute
    class means over all images in each epoch; running means are cheap but lag behind.)

    Args:
        loss: called with (embeddings, labels, references), like every loss.
        num_classes: C, labels are 0 to C - 1.
        dim: D.
        momentum: weight of the old mean when a class is in a batch, [0, 1).
    """

    frozen: Tensor
    means: Tensor | None

    def __init__(self, loss: nn.Module, num_classes: int, dim: int, *, momentum: float) -> None:
        super().__init__()
        self.loss, self.momentum = loss, momentum
        self.register_buffer("frozen", torch.zeros(num_classes, dim))
        has_proxies = getattr(getattr(loss, "proxies", None), "shape", None) == (num_classes, dim)
        self.register_buffer("means", None if has_proxies else torch.zeros(num_classes, dim))

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        if self.training:
            batch = References.check(embeddings, labels, references)
            self._update_means(batch.embeddings.detach(), batch.labels)
        value: Tensor = self.loss(embeddings, labels, references)
        return value

    def _update_means(self, embeddings: Tensor, labels: Tensor) -> None:
        if self.means is None:
            return
        classes, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        sums = self.means.new_zeros(len(classes), embeddings.shape[1])
        batch_means = sums.index_add_(0, index, embeddings.to(sums.dtype)) / counts[:, None]
        old = self.means[classes]
        has_mean = old.any(1, keepdim=True)
        updated = self.momentum * old + (1 - self.momentum) * batch_means
        self.means[classes] = torch.where(has_mean, updated, batch_means)

    @torch.no_grad()
    def freeze(self) -> None:
        """Copy the current vectors of rank 0 to `frozen` on every rank; all ranks must call it."""
        self.frozen.copy_(self.loss.get_parameter("proxies") if self.means is None else self.means)
        if dist.is_initialized():
            dist.broadcast(self.frozen, 0)  # sums on GPUs can differ in the last bit between ranks

    def class_vectors(self) -> NDArray[np.float32]:
        """(C, D) the frozen vectors; zeros for a class that has not been in a batch."""
        vectors: NDArray[np.float32] = self.frozen.cpu().numpy()
        return vectors

"""What the run's classes look like so far, for a sampler that puts similar ones into a batch."""

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from dml.losses import References


class WithClassVectors(nn.Module):
    """A loss that keeps a vector of each class beside it: its proxies if it has them, else running means.

    `frozen` (C, D) is what the sampler goes by until the next `freeze`; being a buffer, like the means, it is
    in every checkpoint, so a resumed run deals the same batches. (Ge et al. 2018, arXiv:1810.06951, compute
    class means anew over all images each epoch; running means cost nothing but lag by the momentum.)

    Args:
        loss: called with (embeddings, labels, references), as every loss.
        num_classes: C, labels are 0 to C - 1.
        dim: D.
        momentum: share of a class's mean that stays when the class is in a batch, [0, 1).
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
            everybody = References.check(embeddings, labels, references)
            self._remember(everybody.embeddings.detach(), everybody.labels)
        value: Tensor = self.loss(embeddings, labels, references)
        return value

    def _remember(self, embeddings: Tensor, labels: Tensor) -> None:
        if self.means is None:
            return
        classes, places, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        sums = self.means.new_zeros(len(classes), embeddings.shape[1])
        now = sums.index_add_(0, places, embeddings.to(sums.dtype)) / counts[:, None]
        before = self.means[classes]
        seen = before.any(1, keepdim=True)
        self.means[classes] = torch.where(seen, self.momentum * before + (1 - self.momentum) * now, now)

    @torch.no_grad()
    def freeze(self) -> None:
        """Take the present vectors as the frozen ones, rank 0's on every rank; all ranks must call it."""
        self.frozen.copy_(self.loss.get_parameter("proxies") if self.means is None else self.means)
        if dist.is_initialized():
            dist.broadcast(self.frozen, 0)  # a GPU's sums may differ in the last bit between ranks

    def class_vectors(self) -> NDArray[np.float32]:
        """(C, D) the frozen ones; zeros for a class not seen by then."""
        vectors: NDArray[np.float32] = self.frozen.cpu().numpy()
        return vectors

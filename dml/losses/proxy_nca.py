"""Proxy-NCA: near the own proxy, relative to the other proxies."""

from typing import Annotated, Unpack

from torch import Tensor

from dml.arguments import PositiveFloat, PositiveInt, Range
from dml.losses.core.class_softmax import ClassSoftmax, ClassSoftmaxOptions, cosine_logits


class ProxyNCA(ClassSoftmax):
    """Neighbourhood component analysis over proxies: near the own one, relative to the others.

        mean over x of -log(e^(-scale d^2(x, own proxy)) / sum over other proxies c of e^(-scale d^2(x, c)))

    A ratio, not a probability: it falls below 0 where the own proxy is much the nearest, and goes on pulling.
    With d^2 = 2 - 2 cos the logits are 2 scale cos; the constant cancels.

    Args:
        num_classes: C >= 2; labels are 0 to C - 1.
        dim: D, length of an embedding.
        scale: multiplies squared distances of unit vectors. The equation has none (1); 9 is the factor 3 on
            embeddings and on proxies that the usual code has.
        options: seed, sharded, sample_rate, normalize; see `ClassSoftmax`.

    Source: Movshovitz-Attias et al. 2017, arXiv:1703.07464, eq. 4.

    Example:
        >>> import torch
        >>> loss = ProxyNCA(num_classes=3, dim=4, seed=0)
        >>> round(loss(torch.eye(4), torch.tensor([0, 0, 1, 2])).item(), 4)
        -1.0641
    """

    def __init__(
        self,
        num_classes: Annotated[int, Range(ge=2, lt=2**63)],
        dim: PositiveInt,
        *,
        scale: PositiveFloat = 9.0,
        **options: Unpack[ClassSoftmaxOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.scale = scale

    def class_logits(self, embeddings: Tensor, *rows: Tensor) -> Tensor:
        return cosine_logits(embeddings, *rows, scale=2 * self.scale)

    def anchor_losses(self, target_logit: Tensor, others_lse: Tensor) -> Tensor:
        return others_lse - target_logit

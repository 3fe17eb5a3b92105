"""Proxy-NCA: neighbourhood component analysis with proxies instead of neighbours."""

from typing import Annotated, Unpack

from torch import Tensor

from dml.arguments import PositiveFloat, PositiveInt, Range
from dml.losses.core.class_softmax import ClassSoftmax, ClassSoftmaxOptions, cosine_logits


class ProxyNCA(ClassSoftmax):
    """Neighbourhood component analysis over proxies: the target proxy relative to all other proxies.

        mean over x of -log(e^(-scale d^2(x, proxy y)) / sum over c != y of e^(-scale d^2(x, proxy c)))
        with y the class of x

    The quotient is not a probability: the loss becomes negative if the target proxy is much closer than all
    others, and its gradient does not vanish. With d^2 = 2 - 2 cos the logits are 2 scale cos; the constant
    cancels.

    Args:
        num_classes: C >= 2; labels are 0 to C - 1.
        dim: D, length of an embedding.
        scale: multiplies squared distances of unit vectors. 1 is the equation of the paper; 9 corresponds to
            common implementations, which multiply embeddings and proxies by 3.
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

"""CosFace: cross-entropy over cosines with an additive cosine margin."""

from typing import Annotated, Unpack

from torch import Tensor

from dml.arguments import PositiveFloat, PositiveInt, Range
from dml.losses.core.class_softmax import ClassSoftmax, ClassSoftmaxOptions


class CosFace(ClassSoftmax):
    """Cross-entropy over scaled cosines, with a margin subtracted from the cosine to the target proxy.

        mean over x of -log(e^z_y / sum over all classes c of e^z_c)
        with z_y = scale (cos(x, proxy y) - margin) for the class y of x, z_c = scale cos(x, proxy c)

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        margin: subtracted from the cosine, [0, 2]; the paper uses 0.35, insightface's configurations 0.4.
        scale: multiplies cosines, > 0.
        options: seed, sharded, sample_rate, normalize; see `ClassSoftmax`.

    Source: Wang et al. 2018, arXiv:1801.09414, eq. 4.

    Example:
        >>> import torch
        >>> loss = CosFace(num_classes=3, dim=4, seed=0)
        >>> round(loss(torch.eye(4), torch.tensor([0, 0, 1, 2])).item(), 4)
        34.8408
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        margin: Annotated[float, Range(ge=0, le=2)] = 0.35,
        scale: PositiveFloat = 64.0,
        **options: Unpack[ClassSoftmaxOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.margin, self.scale = margin, scale

    def anchor_losses(self, target_logit: Tensor, others_lse: Tensor) -> Tensor:
        return super().anchor_losses(target_logit - self.scale * self.margin, others_lse)

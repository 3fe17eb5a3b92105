"""ArcFace: cross-entropy over cosines with an additive angular margin."""

import math
from typing import Annotated, Literal, Unpack

import torch
from torch import Tensor

from dml.arguments import PositiveFloat, PositiveInt, Range
from dml.losses.core.class_softmax import ClassSoftmax, ClassSoftmaxOptions


class ArcFace(ClassSoftmax):
    """Cross-entropy over scaled cosines, with a margin added to the angle between anchor and target proxy.

        mean over x of -log(e^z_y / sum over all classes c of e^z_c)
        with z_y = scale cos(angle(x, proxy y) + margin) for the class y of x, z_c = scale cos(x, proxy c)

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        margin: added to the angle, in radians, [0, pi].
        scale: multiplies cosines, > 0.
        beyond_pi: the target logit where angle + margin exceeds pi and its cosine rises again. "linear":
            cos(angle) - margin sin(margin), as in the authors' first code and most later code. "cosine": the
            published formula, which in this range pushes the embedding away from its proxy.
        options: seed, sharded, sample_rate, normalize; see `ClassSoftmax`.

    Source: Deng et al. 2019, arXiv:1801.07698, eq. 3. The gradient is exact; later insightface code uses a
    straight-through gradient for the angle.

    Example:
        >>> import torch
        >>> loss = ArcFace(num_classes=3, dim=4, seed=0)
        >>> round(loss(torch.eye(4), torch.tensor([0, 0, 1, 2])).item(), 4)
        37.2416
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        margin: Annotated[float, Range(ge=0, le=math.pi)] = 0.5,
        scale: PositiveFloat = 64.0,
        beyond_pi: Literal["linear", "cosine"] = "linear",
        **options: Unpack[ClassSoftmaxOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.margin, self.scale, self.beyond_pi = margin, scale, beyond_pi

    def anchor_losses(self, target_logit: Tensor, others_lse: Tensor) -> Tensor:
        cosines = target_logit / self.scale
        with_margin = _add_angle(cosines, self.margin, linear_beyond_pi=self.beyond_pi == "linear")
        return super().anchor_losses(self.scale * with_margin, others_lse)


def _add_angle(cosines: Tensor, angle: float, *, linear_beyond_pi: bool) -> Tensor:
    """cos(arccos(cosines) + angle), optionally linear beyond pi; the gradient at +-1 is finite."""
    # The lower bound keeps the gradient of the root below 1e4; that of arccos would be infinite.
    sines = (1 - cosines.square()).clamp_min(1e-8).sqrt()
    rotated = cosines * math.cos(angle) - sines * math.sin(angle) if angle else cosines
    if not linear_beyond_pi:
        return rotated
    return torch.where(cosines >= -math.cos(angle), rotated, cosines - angle * math.sin(angle))

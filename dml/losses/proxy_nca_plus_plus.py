"""Proxy-NCA++: Proxy-NCA with a probability over all proxies."""

from typing import Unpack

from dml.arguments import PositiveFloat, PositiveInt
from dml.losses.core.class_softmax import ClassSoftmax, ClassSoftmaxOptions


class ProxyNCAPlusPlus(ClassSoftmax):
    """Proxy-NCA with a probability: the denominator includes the target proxy.

        mean over x of -log(e^(-d^2(x, proxy y) / t) / sum over all classes c of e^(-d^2(x, proxy c) / t))
        with y the class of x

    With d^2 = 2 - 2 cos it equals `NormalizedSoftmax` with half the temperature.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        temperature: t, divides squared distances of unit vectors, > 0.
        options: seed, sharded, sample_rate, normalize; see `ClassSoftmax`.

    Source: Teh, DeVries, Taylor 2020, arXiv:2004.01113, eq. 5 and 6; max pooling and layer norm of their
    encoder are not part of the loss.

    Example:
        >>> import torch
        >>> loss = ProxyNCAPlusPlus(num_classes=3, dim=4, seed=0)
        >>> round(loss(torch.eye(4), torch.tensor([0, 0, 1, 2])).item(), 4)
        5.135
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        temperature: PositiveFloat = 1 / 9,
        **options: Unpack[ClassSoftmaxOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.temperature = temperature
        self.scale = 2 / temperature

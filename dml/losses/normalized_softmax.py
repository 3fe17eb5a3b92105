"""Normalized softmax: cross-entropy over cosines."""

from typing import Unpack

from dml.arguments import PositiveFloat, PositiveInt
from dml.losses.core.class_softmax import ClassSoftmax, ClassSoftmaxOptions


class NormalizedSoftmax(ClassSoftmax):
    """Cross-entropy over cosines to the proxies, divided by a temperature.

        mean over x of -log(e^(cos(x, proxy y) / t) / sum over all classes c of e^(cos(x, proxy c) / t))
        with y the class of x

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        temperature: t, divides cosines, > 0.
        options: seed, sharded, sample_rate, normalize; see `ClassSoftmax`.

    Source: Zhai, Wu 2019, arXiv:1811.12649, sec. 3.1; the layer norm of their encoder is not part of the
        loss.

    Example:
        >>> import torch
        >>> loss = NormalizedSoftmax(num_classes=3, dim=4, seed=0)
        >>> round(loss(torch.eye(4), torch.tensor([0, 0, 1, 2])).item(), 4)
        5.6881
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        temperature: PositiveFloat = 0.05,
        **options: Unpack[ClassSoftmaxOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.temperature = temperature
        self.scale = 1 / temperature

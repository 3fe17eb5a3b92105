"""Softmax: cross-entropy after a linear layer, plain classification."""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from dml.arguments import PositiveInt
from dml.losses.core.class_softmax import ClassSoftmax, ClassSoftmaxOptions


class Softmax(ClassSoftmax):
    """Cross-entropy after a linear layer with bias: plain classification, a common baseline.

        mean over x of -log(e^(w_y . x + b_y) / sum over all classes c of e^(w_c . x + b_c))

    By default embeddings are not normalized; weights never are. The initial weights (C, D) are normal with
    the variance of torch.nn.Linear, 1 / (3 D); the initial bias is 0.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        options: seed, sharded, sample_rate, normalize; see `ClassSoftmax`.

    Source: Bishop 1995, "Neural networks for pattern recognition", sec. 6.9; as a baseline in metric learning
    Zhai, Wu 2019, arXiv:1811.12649, sec. 3.

    Example:
        >>> import torch
        >>> loss = Softmax(num_classes=3, dim=4, seed=0)
        >>> round(loss(torch.eye(4), torch.tensor([0, 0, 1, 2])).item(), 4)
        1.0263
    """

    def __init__(
        self, num_classes: PositiveInt, dim: PositiveInt, **options: Unpack[ClassSoftmaxOptions]
    ) -> None:
        options.setdefault("normalize", False)
        super().__init__(num_classes, dim, deviation=1 / math.sqrt(3 * dim), **options)
        self.bias = nn.Parameter(torch.zeros(len(self.shard)))

    def class_logits(self, embeddings: Tensor, *rows: Tensor) -> Tensor:
        weights, bias = (parameter.to(embeddings.dtype) for parameter in rows)
        return torch.addmm(bias, embeddings, weights.T)

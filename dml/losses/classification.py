"""Classification by inner products: cross-entropy over all classes, plain or with a margin."""

import math
from functools import partial
from typing import Annotated, Literal, Unpack

import torch
from torch import Tensor, nn

from dml.losses.arguments import PositiveFloat, PositiveInt, Range
from dml.losses.blocks import softplus
from dml.losses.contest import Contest, ContestOptions, cosine_logits
from dml.losses.references import References


class Softmax(Contest):
    """Cross-entropy behind a linear layer with bias: plain classification, the field's baseline.

    By default embeddings come as they are; weights are never normalised. The weights (C, D) start normal with
    the variance of torch's linear layer, 1 / (3 D), the bias at 0.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        options: seed, sharded, sample_rate, normalize; see `Contest`.

    Source: Bishop 1995, "Neural networks for pattern recognition", sec. 6.9; as a baseline of metric learning
    Zhai, Wu 2019, arXiv:1811.12649, sec. 3.
    """

    def __init__(self, num_classes: PositiveInt, dim: PositiveInt, **options: Unpack[ContestOptions]) -> None:
        options.setdefault("normalize", False)
        super().__init__(num_classes, dim, deviation=1 / math.sqrt(3 * dim), **options)
        self.bias = nn.Parameter(torch.zeros(len(self.shard)))

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return _cross_entropy(*self.contest(embeddings, labels, references, _linear_logits))


class NormalisedSoftmax(Contest):
    """Cross-entropy over cosines to the proxies, divided by a temperature.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        temperature: divides cosines, > 0.
        options: seed, sharded, sample_rate, normalize; see `Contest`.

    Source: Zhai, Wu 2019, arXiv:1811.12649, sec. 3.1; their layer norm before the embedding is the encoder's.
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        temperature: PositiveFloat = 0.05,
        **options: Unpack[ContestOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.temperature = temperature

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        logits = partial(cosine_logits, scale=1 / self.temperature)
        return _cross_entropy(*self.contest(embeddings, labels, references, logits))


class CosFace(Contest):
    """Cross-entropy over scaled cosines, in which the own class must win with cos(angle) - margin.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        margin: of cosine; the paper has 0.35, insightface's configurations 0.4.
        scale: multiplies cosines, > 0.
        options: seed, sharded, sample_rate, normalize; see `Contest`.

    Source: Wang et al. 2018, arXiv:1801.09414, eq. 4.
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        margin: Annotated[float, Range(ge=0, le=2)] = 0.35,
        scale: PositiveFloat = 64.0,
        **options: Unpack[ContestOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.margin = margin
        self.scale = scale

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        logits = partial(cosine_logits, scale=self.scale)
        target, rivals = self.contest(embeddings, labels, references, logits)
        return _cross_entropy(target - self.scale * self.margin, rivals)


class ArcFace(Contest):
    """Cross-entropy over scaled cosines, in which the own class must win with cos(angle + margin).

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        margin: of the angle, in radians, [0, pi].
        scale: multiplies cosines, > 0.
        beyond_pi: what follows where angle + margin exceeds pi and its cosine rises again. "linear":
            cos(angle) - margin sin(margin), as the authors' first code and most since; "cosine": the formula
            as printed, which there pulls the embedding away from its proxy.
        options: seed, sharded, sample_rate, normalize; see `Contest`.

    Source: Deng et al. 2019, arXiv:1801.07698, eq. 3; the gradient is the formula's, where insightface's
    later code passes it straight through the angle.
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        margin: Annotated[float, Range(ge=0, le=math.pi)] = 0.5,
        scale: PositiveFloat = 64.0,
        beyond_pi: Literal["linear", "cosine"] = "linear",
        **options: Unpack[ContestOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.margin = margin
        self.scale = scale
        self.beyond_pi = beyond_pi

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        logits = partial(cosine_logits, scale=self.scale)
        target, rivals = self.contest(embeddings, labels, references, logits)
        turned = _turned(target / self.scale, self.margin, linear_beyond_pi=self.beyond_pi == "linear")
        return _cross_entropy(self.scale * turned, rivals)


def _linear_logits(embeddings: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias.to(embeddings.dtype), embeddings, weights.to(embeddings.dtype).T)


def _cross_entropy(target: Tensor, rivals: Tensor) -> Tensor:
    """The mean of -log(e^target / (e^target + e^rivals))."""
    return softplus(rivals - target).mean()


def _turned(cosines: Tensor, angle: float, *, linear_beyond_pi: bool) -> Tensor:
    """cos(arccos(cosines) + angle), falling on linearly beyond pi; the gradient at +-1 is finite."""
    # The floor keeps the root's slope below 1e4; arccos itself would have an infinite one.
    sines = (1 - cosines.square()).clamp_min(1e-8).sqrt()
    turned = cosines * math.cos(angle) - sines * math.sin(angle) if angle else cosines
    if not linear_beyond_pi:
        return turned
    return torch.where(cosines >= -math.cos(angle), turned, cosines - angle * math.sin(angle))

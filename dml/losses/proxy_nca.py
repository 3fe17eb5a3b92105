"""Neighbourhood component analysis over proxies: near the own one, relative to the others."""

from functools import partial
from typing import Unpack

from torch import Tensor

from dml.losses.arguments import PositiveFloat, PositiveInt
from dml.losses.blocks import softplus
from dml.losses.contest import Contest, ContestOptions, cosine_logits
from dml.losses.references import References

# Between unit vectors d^2 = 2 - 2 cos: both losses have twice the cosine as logit, and the 2 cancels.


class ProxyNCA(Contest):
    """Mean of -log(e^(-scale d^2(x, own proxy)) / sum of the same over all other proxies).

    A ratio, not a probability: it falls below 0 where the own proxy is much the nearest, and goes on pulling.

    Args:
        num_classes: C >= 2; labels are 0 to C - 1.
        dim: D, length of an embedding.
        scale: multiplies squared distances of unit vectors. The equation has none (1); 9 is the factor 3 on
            embeddings and on proxies that the usual code has.
        options: seed, sharded, sample_rate, normalize; see `Contest`.

    Source: Movshovitz-Attias et al. 2017, arXiv:1703.07464, eq. 4.
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        scale: PositiveFloat = 9.0,
        **options: Unpack[ContestOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        if num_classes < 2:
            raise ValueError(
                f"Proxy-NCA is a ratio to the other classes, so num_classes must be at least 2; got "
                f"{num_classes}. ProxyNCAPlusPlus takes one."
            )
        self.scale = scale

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        logits = partial(cosine_logits, scale=2 * self.scale)
        target, rivals = self.contest(embeddings, labels, references, logits)
        return (rivals - target).mean()


class ProxyNCAPlusPlus(Contest):
    """Mean of -log(e^(-d^2(x, own proxy) / T) / sum of the same over all proxies): a probability.

    It is `NormalisedSoftmax` at half the temperature.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        temperature: T, divides squared distances of unit vectors.
        options: seed, sharded, sample_rate, normalize; see `Contest`.

    Source: Teh, DeVries, Taylor 2020, arXiv:2004.01113, eq. 5 and 6; their max pooling and layer norm are the
    encoder's.
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        temperature: PositiveFloat = 1 / 9,
        **options: Unpack[ContestOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.temperature = temperature

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        logits = partial(cosine_logits, scale=2 / self.temperature)
        target, rivals = self.contest(embeddings, labels, references, logits)
        return softplus(rivals - target).mean()

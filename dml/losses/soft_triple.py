"""Several centres for each class, among which an anchor softly chooses."""

from functools import partial
from typing import Annotated, Unpack

import torch
from torch import Tensor, nn

from dml.losses.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, Range
from dml.losses.blocks import softplus
from dml.losses.contest import Contest, ContestOptions
from dml.losses.references import References
from dml.losses.shards import sum_over_shards
from dml.similarity import at_least_float32, distances, product


class SoftTriple(Contest):
    """Cross-entropy over scale * S(x, c), in which the own class must win with S - margin.

    S(x, c) is the mean of the similarities to the K centres of a class, weighted by their softmax. A
    regulariser draws the centres of a class together, so that it uses no more than it needs.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        centres: K; the paper has 10 for CUB and CARS, 2 for SOP.
        scale: lambda in the paper.
        gamma: temperature of the choice among centres.
        margin: delta in the paper.
        tau: weight of the regulariser, the centres' mean distance within their class, halved; 0: none.
        options: seed, sharded, sample_rate, normalize; see `Contest`. The regulariser is always over all
            classes.

    Source: Qian et al. 2019, arXiv:1909.05235, eq. 5-7 and 9.
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        centres: PositiveInt = 10,
        scale: PositiveFloat = 20.0,
        gamma: PositiveFloat = 0.1,
        margin: Annotated[float, Range(ge=0, le=2)] = 0.01,
        tau: NonNegativeFloat = 0.2,
        **options: Unpack[ContestOptions],
    ) -> None:
        super().__init__(num_classes, dim, centres=centres, **options)
        self.centres = centres
        self.scale = scale
        self.gamma = gamma
        self.margin = margin
        self.tau = tau

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        logits = partial(_logits, scale=self.scale, gamma=self.gamma)
        target, rivals = self.contest(embeddings, labels, references, logits, values_per_logit=self.centres)
        loss = softplus(rivals - target + self.scale * self.margin).mean()
        if self.tau == 0 or self.centres == 1:
            return loss
        spread = sum_over_shards(_distances_within_classes(self.proxies), self.shard.world_size)
        return loss + self.tau * spread / (self.num_classes * self.centres * (self.centres - 1))


def _logits(anchors: Tensor, proxies: Tensor, *, scale: float, gamma: float) -> Tensor:
    centres = nn.functional.normalize(proxies.to(anchors.dtype), dim=-1)
    similarities = (anchors @ centres.flatten(0, 1).T).view(len(anchors), *proxies.shape[:2])
    chosen = (similarities / gamma).softmax(-1)
    relaxed: Tensor = scale * (chosen * similarities).sum(-1)
    return relaxed


def _distances_within_classes(proxies: Tensor) -> Tensor:
    """The sum over classes of the Euclidean distances of all pairs of their centres, (C, K, D) to scalar."""
    centres = nn.functional.normalize(at_least_float32(proxies), dim=-1)
    first, second = torch.triu_indices(proxies.shape[1], proxies.shape[1], 1, device=proxies.device)
    pairs = product(centres, centres.mT)[:, first, second]
    return distances(pairs).sum()

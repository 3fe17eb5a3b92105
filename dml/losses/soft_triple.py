"""SoftTriple: softmax over classes with several centers each, combined by soft assignment."""

from typing import Annotated, Unpack

import torch
from torch import Tensor, nn

from dml.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, Range
from dml.losses.core.class_softmax import ClassSoftmax, ClassSoftmaxOptions
from dml.losses.core.log_sum_exp import softplus
from dml.losses.core.references import References
from dml.losses.core.shards import sum_over_shards
from dml.similarity import at_least_float32, distances, product


class SoftTriple(ClassSoftmax):
    """Cross-entropy over soft similarities to classes with several centers, with a margin.

        mean over x of -log(e^z_y / sum over all classes c of e^z_c)
        + tau * sum over classes and pairs of their centers of d(k, l) / (C K (K - 1))
        with z_y = scale (S(x, y) - margin) for the class y of x, z_c = scale S(x, c)
        and S(x, c) = sum over the centers k of class c of softmax_k(cos(x, k) / gamma) cos(x, k)

    The regularizer pulls the centers of a class together, so that a class uses only the centers it needs.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        centers_per_class: K; the paper uses 10 for CUB and CARS, 2 for SOP.
        scale: lambda in the paper, > 0.
        gamma: temperature of the soft assignment to centers, > 0.
        margin: delta in the paper, in cosine, [0, 2].
        tau: weight of the regularizer, half the mean distance between centers of a class; 0: none.
        options: seed, sharded, sample_rate, normalize; see `ClassSoftmax`. The regularizer always covers all
            classes.

    Source: Qian et al. 2019, arXiv:1909.05235, eq. 5-7 and 9.

    Example:
        >>> import torch
        >>> loss = SoftTriple(num_classes=3, dim=4, centers_per_class=2, seed=0)
        >>> round(loss(torch.eye(4), torch.tensor([0, 0, 1, 2])).item(), 4)
        10.3934
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        centers_per_class: PositiveInt = 10,
        scale: PositiveFloat = 20.0,
        gamma: PositiveFloat = 0.1,
        margin: Annotated[float, Range(ge=0, le=2)] = 0.01,
        tau: NonNegativeFloat = 0.2,
        **options: Unpack[ClassSoftmaxOptions],
    ) -> None:
        super().__init__(num_classes, dim, centers_per_class=centers_per_class, **options)
        self.centers_per_class = centers_per_class
        self.scale, self.gamma, self.margin, self.tau = scale, gamma, margin, tau

    def class_logits(self, embeddings: Tensor, *rows: Tensor) -> Tensor:
        (proxies,) = rows
        centers = nn.functional.normalize(proxies.to(embeddings.dtype), dim=-1)
        cosines = (embeddings @ centers.flatten(0, 1).T).view(len(embeddings), *proxies.shape[:2])
        weights = (cosines / self.gamma).softmax(-1)
        logits: Tensor = self.scale * (weights * cosines).sum(-1)
        return logits

    def anchor_losses(self, target_logit: Tensor, others_lse: Tensor) -> Tensor:
        return softplus(others_lse - target_logit + self.scale * self.margin)

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        num_centers = self.centers_per_class
        logits = self.logits(embeddings, labels, references, values_per_logit=num_centers)
        loss = self.anchor_losses(*logits).mean()
        if self.tau == 0 or num_centers == 1:
            return loss
        spread = sum_over_shards(_distances_within_classes(self.proxies), self.shard.world_size)
        return loss + self.tau * spread / (self.num_classes * num_centers * (num_centers - 1))


def _distances_within_classes(proxies: Tensor) -> Tensor:
    """The sum of Euclidean distances over all pairs of centers of the same class, (C, K, D) to scalar."""
    centers = nn.functional.normalize(at_least_float32(proxies), dim=-1)
    first, second = torch.triu_indices(proxies.shape[1], proxies.shape[1], 1, device=proxies.device)
    return distances(product(centers, centers.mT)[:, first, second]).sum()

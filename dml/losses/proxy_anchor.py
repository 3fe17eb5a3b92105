"""Proxy-Anchor: proxies are the anchors, each compared with all images of the batch."""

from functools import partial
from typing import Annotated, Unpack

import torch
from torch import Tensor

from dml.arguments import PositiveFloat, PositiveInt, Range
from dml.losses.core.class_blocks import target_and_others_lse
from dml.losses.core.class_softmax import cosine_logits
from dml.losses.core.log_sum_exp import softplus
from dml.losses.core.proxies import ProxyLoss, ProxyOptions
from dml.losses.core.references import References
from dml.losses.core.shards import Shard, sum_over_shards


class ProxyAnchor(ProxyLoss):
    """Proxies are the anchors: each pulls the images of its class and pushes all other images away.

        mean over proxies with images in the batch of log(1 + sum over these of e^(-scale (s - margin)))
      + mean over all proxies of log(1 + sum over all other images of e^(scale (s + margin)))

    Each rank compares 1/W of the proxies with the global batch; with `sharded` it holds only these.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        margin: delta in the paper, in cosine similarity, [0, 1].
        scale: alpha in the paper, > 0.
        options: seed, sharded, normalize; see `ProxyLoss`.

    Source: Kim et al. 2020, arXiv:2003.13911, eq. 4.

    Example:
        >>> import torch
        >>> loss = ProxyAnchor(num_classes=3, dim=4, seed=0)
        >>> round(loss(torch.eye(4), torch.tensor([0, 0, 1, 2])).item(), 4)
        11.7169
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        margin: Annotated[float, Range(ge=0, le=1)] = 0.1,
        scale: PositiveFloat = 32.0,
        **options: Unpack[ProxyOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.margin, self.scale = margin, scale

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        batch = self.global_batch(labels, references)
        shard = self.shard
        if not self.sharded:
            shard = Shard(self.num_classes, batch.first_row // len(labels), len(batch.labels) // len(labels))
        proxies = self.proxies if len(shard) == len(self.proxies) else self.proxies[shard.first : shard.last]
        index = batch.labels - shard.first
        logits = partial(cosine_logits, scale=self.scale)
        target_logit, others_lse = target_and_others_lse(
            logits, batch.embeddings, index, (proxies,), per="class"
        )
        attracting, is_present = _log_sum_exp_by_class(
            self.scale * self.margin - target_logit, index, len(shard)
        )
        repelling = softplus(others_lse + self.scale * self.margin)
        sorted_labels = batch.labels.sort().values
        num_present = 1 + torch.count_nonzero(sorted_labels[1:] != sorted_labels[:-1])
        part = (softplus(attracting) * is_present).sum() / num_present + repelling.sum() / self.num_classes
        # With sharded proxies every rank returns the total. Otherwise loss and gradients are averaged over
        # ranks later, so the part is multiplied by W.
        return sum_over_shards(part, shard.world_size) if self.sharded else part * shard.world_size


def _log_sum_exp_by_class(values: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(C,) log-sum-exp of the values (N,) of each class, 0 for an empty class; (C,) bool, class not empty."""
    # Classes outside [0, C) go to an extra entry: selecting with a mask would synchronize with the GPU.
    index = torch.where((classes >= 0) & (classes < num_classes), classes, num_classes)
    peaks = values.new_full((num_classes + 1,), -torch.inf)
    peaks = peaks.scatter_reduce(0, index, values.detach(), "amax")
    sums = torch.zeros_like(peaks).index_add(0, index, (values - peaks[index]).exp())
    is_present = sums > 0
    logs = torch.where(is_present, sums, 1.0).log() + torch.where(is_present, peaks, 0.0)
    return logs[:-1], is_present[:-1]

"""Proxies as anchors: each draws its class near and pushes all other images away."""

from functools import partial
from typing import Unpack

import torch
from torch import Tensor

from dml.losses.blocks import softplus
from dml.losses.class_blocks import target_and_rivals
from dml.losses.contest import cosine_logits
from dml.losses.proxies import ProxyLoss, ProxyOptions
from dml.losses.references import References
from dml.losses.shards import Shard, sum_over_shards


class ProxyAnchor(ProxyLoss):
    """Mean over proxies with images in the batch of log(1 + sum over their images of e^(-scale (s - margin)))
    plus mean over all proxies of log(1 + sum over other images of e^(scale (s + margin))).

    A rank compares its share of the proxies, which with `sharded` are all it has, with the global batch.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        margin: of cosine similarity, delta in the paper.
        scale: alpha in the paper.
        options: seed, sharded; see `ProxyLoss`.

    Source: Kim et al. 2020, arXiv:2003.13911, eq. 4.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.1,
        scale: float = 32.0,
        **options: Unpack[ProxyOptions],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.margin = margin
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        batch = self.global_batch(embeddings, labels, references)
        share = self.shard
        if not self.sharded:
            share = Shard(self.num_classes, batch.first_row // len(labels), len(batch.labels) // len(labels))
        proxies = self.proxies if len(share) == len(self.proxies) else self.proxies[share.first : share.last]
        places = batch.labels - share.first
        logits = partial(cosine_logits, scale=self.scale)
        near, far = target_and_rivals(logits, batch.embeddings, places, (proxies,), per="class")
        ours = (places >= 0) & (places < len(share))
        attracting = _log_sum_exp_by_class(self.scale * self.margin - near[ours], places[ours])
        repelling = softplus(far + self.scale * self.margin)
        num_present = len(torch.unique(batch.labels))
        part = softplus(attracting).sum() / num_present + repelling.sum() / self.num_classes
        # Of whole proxies the ranks' parts are averaged, loss and gradients alike; shards know the total.
        return sum_over_shards(part, share.world_size) if self.sharded else part * share.world_size


def _log_sum_exp_by_class(values: Tensor, classes: Tensor) -> Tensor:
    """log sum exp of the values of every class that has some, (N,) to one for each such class."""
    present, index = torch.unique(classes, return_inverse=True)
    peaks = values.new_full((len(present),), -torch.inf)
    peaks = peaks.scatter_reduce(0, index, values.detach(), "amax")
    return torch.zeros_like(peaks).index_add(0, index, (values - peaks[index]).exp()).log() + peaks

"""Proxy losses by a softmax over the classes: the own class against all others, or a sample of them."""

from typing import Annotated, Unpack

import torch
from torch import Tensor, nn

from dml.arguments import PositiveInt, Range
from dml.losses.core.class_blocks import target_and_others_lse
from dml.losses.core.log_sum_exp import softplus
from dml.losses.core.proxies import ProxyArguments, ProxyLoss, ProxyOptions
from dml.losses.core.references import References
from dml.losses.core.rng import CounterRNG
from dml.losses.core.shards import combine_lse


class ClassSoftmaxOptions(ProxyOptions, total=False):
    """The arguments of every loss by a softmax over classes; `ClassSoftmax` documents them."""

    sample_rate: Annotated[float, Range(gt=0, le=1)] | None


class ClassSoftmax(ProxyLoss):
    """Cross-entropy over the logits of each anchor to the proxies of all classes, or of a sample of them.

        mean over anchors of -log(exp(target_logit) / (exp(target_logit) + exp(others_lse)))

    A subclass sets `scale`, or computes other logits in `class_logits`, or changes what is made of them in
    `anchor_losses`.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        sample_rate: the probability with which a class that is not in the training batch is in its softmax;
            None: all classes are, always. Only the rows of those that are have a gradient. Which they are is
            a function of the seed and of the number of batches before, which `state_dict` keeps, and not of
            the ranks. Partial-FC (An et al. 2022, arXiv:2203.15565) fills each shard up to an exact number;
            here it varies by a binomial's deviation.
        options: centers_per_class, deviation, seed, sharded, normalize; see `ProxyLoss`.
    """

    scale: float
    """Multiplies the cosines."""
    num_calls: Tensor
    """() int64, with a sample rate: training batches seen."""

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        sample_rate: Annotated[float, Range(gt=0, le=1)] | None = None,
        **options: Unpack[ProxyArguments],
    ) -> None:
        super().__init__(num_classes, dim, **options)
        self.sample_rate = sample_rate
        if sample_rate is not None:
            self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))

    def class_logits(self, embeddings: Tensor, *rows: Tensor) -> Tensor:
        """(B, c) fresh logits of embeddings (B, D) to c classes, given their rows of every parameter."""
        return cosine_logits(embeddings, *rows, scale=self.scale)

    def anchor_losses(self, target_logit: Tensor, others_lse: Tensor) -> Tensor:
        """(B,) the loss of each anchor."""
        return softplus(others_lse - target_logit)

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return self.anchor_losses(*self.logits(embeddings, labels, references)).mean()

    def logits(
        self, embeddings: Tensor, labels: Tensor, references: References, *, values_per_logit: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Every anchor's logit to its own class, and the log-sum-exp of those to the others.

        The anchors are this rank's, or with shards those of all ranks: either way the mean over anchors, and
        then over ranks, is that over the global batch.

        Args:
            embeddings: (B, D) float.
            labels: (B,) int64 class ids, [0, C).
            references: the global batch.
            values_per_logit: see `target_and_others_lse`.
        """
        batch = self.global_batch(labels, references)
        chosen = self._sample(batch.labels)
        if self.shard.world_size > 1:
            embeddings, labels = batch.embeddings, batch.labels
        target_logit, others_lse = target_and_others_lse(
            self.class_logits,
            embeddings,
            _index_among(labels - self.shard.first, chosen, len(self.shard)),
            tuple(self.parameters(recurse=False)),
            chosen=chosen,
            values_per_logit=values_per_logit,
        )
        return combine_lse(target_logit, others_lse, self.shard.world_size)

    @torch.no_grad()
    def _sample(self, labels: Tensor) -> Tensor | None:
        """The rows of this shard in the softmax of a global batch with these labels, ascending; None: all."""
        if self.sample_rate is None or not self.training:
            return None
        first, last = self.shard.first, self.shard.last
        classes = torch.arange(first, last, device=labels.device)
        is_chosen = CounterRNG(self.seed, self.num_calls).uniform(classes, 1)[:, 0] < self.sample_rate
        self.num_calls += 1
        is_chosen = nn.functional.pad(is_chosen, (0, 1))  # labels of other shards go behind the last row
        is_chosen[torch.where((labels >= first) & (labels < last), labels - first, last - first)] = True
        return is_chosen[:-1].nonzero()[:, 0]


def _index_among(rows: Tensor, chosen: Tensor | None, num_rows: int) -> Tensor:
    """The index of each row among the chosen ones; -1 for rows of another shard."""
    is_here = (rows >= 0) & (rows < num_rows)
    index = rows if chosen is None else torch.searchsorted(chosen, rows)
    return torch.where(is_here, index, -1)


def cosine_logits(anchors: Tensor, proxies: Tensor, *, scale: float) -> Tensor:
    """(B, c) scaled cosines of unit anchors (B, D) to proxies (c, D) of any length."""
    return (scale * anchors) @ nn.functional.normalize(proxies.to(anchors.dtype), dim=-1).T

"""Base class of proxy losses with a softmax over all classes, or over a random sample of them."""

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
    """Arguments of every loss with a softmax over classes; see `ClassSoftmax`."""

    sample_rate: Annotated[float, Range(gt=0, le=1)] | None


class ClassSoftmax(ProxyLoss):
    """Cross-entropy over the logits of each anchor to the proxies of all classes, or of a sample of them.

        mean over anchors of -log(exp(target_logit) / (exp(target_logit) + exp(others_lse)))

    A subclass sets `scale`, overrides `class_logits` to compute other logits, or overrides `anchor_losses` to
    compute another loss from them.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        sample_rate: probability that a class outside the training batch takes part in the softmax; None: all
            classes do. Only the proxies of these classes get a gradient. The sample depends on the seed and
            on the number of previous batches, which is in `state_dict`, not on the ranks. Partial-FC (An et
            al. 2022, arXiv:2203.15565) samples a fixed number per shard; here the number is binomial.
        options: centers_per_class, deviation, seed, sharded, normalize; see `ProxyLoss`.
    """

    scale: float
    """Multiplies the cosines."""
    num_calls: Tensor
    """() int64, training batches so far; exists only with a sample rate."""

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
        """(B, c) newly allocated logits of embeddings (B, D) to c classes.

        Args:
            embeddings: (B, D) float.
            rows: the rows of these classes in every parameter, (c, ...) each.
        """
        return cosine_logits(embeddings, *rows, scale=self.scale)

    def anchor_losses(self, target_logit: Tensor, others_lse: Tensor) -> Tensor:
        """(B,) the loss of each anchor."""
        return softplus(others_lse - target_logit)

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return self.anchor_losses(*self.logits(embeddings, labels, references)).mean()

    def logits(
        self, embeddings: Tensor, labels: Tensor, references: References, *, values_per_logit: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The logit of each anchor to its class, and the log-sum-exp of its logits to the other classes.

        The anchors are those of this rank, or of all ranks if the proxies are sharded. In both cases the mean
        over anchors and then over ranks is the mean over the global batch.

        Args:
            embeddings: (B, D) float.
            labels: (B,) int64 class ids, [0, C).
            references: the global batch.
            values_per_logit: see `target_and_others_lse`.
        """
        batch = self.global_batch(labels, references)
        sampled = self._sample(batch.labels)
        if self.shard.world_size > 1:
            embeddings, labels = batch.embeddings, batch.labels
        target_logit, others_lse = target_and_others_lse(
            self.class_logits,
            embeddings,
            _sampled_index(labels - self.shard.first, sampled, len(self.shard)),
            tuple(self.parameters(recurse=False)),
            sampled=sampled,
            values_per_logit=values_per_logit,
        )
        return combine_lse(target_logit, others_lse, self.shard.world_size)

    @torch.no_grad()
    def _sample(self, labels: Tensor) -> Tensor | None:
        """The rows of this shard that take part, for the labels of the global batch; ascending. None: all."""
        if self.sample_rate is None or not self.training:
            return None
        first, last = self.shard.first, self.shard.last
        classes = torch.arange(first, last, device=labels.device)
        is_sampled = CounterRNG(self.seed, self.num_calls).uniform(classes, 1)[:, 0] < self.sample_rate
        self.num_calls += 1
        is_sampled = nn.functional.pad(is_sampled, (0, 1))  # an extra row for the labels of other shards
        is_sampled[torch.where((labels >= first) & (labels < last), labels - first, last - first)] = True
        return is_sampled[:-1].nonzero()[:, 0]


def _sampled_index(rows: Tensor, sampled: Tensor | None, num_rows: int) -> Tensor:
    """The index of each row in `sampled`; -1 for rows of another shard."""
    in_shard = (rows >= 0) & (rows < num_rows)
    index = rows if sampled is None else torch.searchsorted(sampled, rows)
    return torch.where(in_shard, index, -1)


def cosine_logits(anchors: Tensor, proxies: Tensor, *, scale: float) -> Tensor:
    """(B, c) scaled cosines between anchors (B, D) of unit length and proxies (c, D) of any length."""
    return (scale * anchors) @ nn.functional.normalize(proxies.to(anchors.dtype), dim=-1).T

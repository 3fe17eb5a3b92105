"""Proxy losses in which each anchor's own class must win against all others, or against a sample of them."""

from typing import Annotated

import torch
from torch import Tensor, nn

from dml.losses.arguments import PositiveFloat, PositiveInt, Range, Seed
from dml.losses.chance import Chance
from dml.losses.class_blocks import Logits, target_and_rivals
from dml.losses.proxies import ProxyLoss, ProxyOptions
from dml.losses.references import References
from dml.losses.shards import combine_contests


class ContestOptions(ProxyOptions, total=False):
    """`ProxyOptions`, and the share of the other classes that each batch meets; `Contest` says more."""

    sample_rate: float | None


class Contest(ProxyLoss):
    """Proxies of which every anchor meets its own class's and the others', or a sample of the others'.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        centres: see `ProxyLoss`, as deviation, seed, sharded and normalize.
        sample_rate: Partial-FC (An et al. 2022, arXiv:2203.15565): a training batch meets its own classes and
            each other class with this probability, in (0, 1]; only their rows have a gradient. Which they are
            is a function of the seed and of the number of batches before, which `state_dict` keeps, and not
            of the ranks. The paper fills each shard up to an exact number; here it varies by a binomial's
            deviation. None: all classes, always.
    """

    num_calls: Tensor
    """() int64, with a sample rate: training batches seen."""

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        centres: PositiveInt | None = None,
        deviation: PositiveFloat | None = None,
        seed: Seed | None = None,
        sharded: bool = False,
        sample_rate: Annotated[float, Range(gt=0, le=1)] | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__(
            num_classes,
            dim,
            centres=centres,
            deviation=deviation,
            seed=seed,
            sharded=sharded,
            normalize=normalize,
        )
        self.sample_rate = sample_rate
        if sample_rate is not None:
            self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))

    def contest(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: References,
        logits: Logits,
        *,
        values_per_logit: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Every anchor's logit to its own class, and the log-sum-exp of those to the others it meets.

        The anchors are this rank's, or with shards those of all ranks: either way the mean over anchors, and
        then over ranks, is that over the global batch.

        Args:
            embeddings: (B, D) float.
            labels: (B,) int64 class ids, [0, C).
            references: the global batch.
            logits: from anchors and the rows of some classes, one tensor per parameter.
            values_per_logit: see `target_and_rivals`.
        """
        batch = self.global_batch(labels, references)
        chosen = self._sample(batch.labels)
        if self.shard.world_size > 1:
            embeddings, labels = batch.embeddings, batch.labels
        target, rivals = target_and_rivals(
            logits,
            embeddings,
            _places(labels - self.shard.first, chosen, len(self.shard)),
            tuple(self.parameters(recurse=False)),
            chosen=chosen,
            values_per_logit=values_per_logit,
        )
        return combine_contests(target, rivals, self.shard.world_size)

    @torch.no_grad()
    def _sample(self, labels: Tensor) -> Tensor | None:
        """The rows of this shard that the global batch with these labels meets, ascending; None: all."""
        if self.sample_rate is None or not self.training:
            return None
        first, last = self.shard.first, self.shard.last
        classes = torch.arange(first, last, device=labels.device)
        met = Chance(self.seed, self.num_calls).uniform(classes, 1, 0)[:, 0] < self.sample_rate
        self.num_calls += 1
        met = nn.functional.pad(met, (0, 1))  # labels of other shards go behind the last row
        met[torch.where((labels >= first) & (labels < last), labels - first, last - first)] = True
        return met[:-1].nonzero()[:, 0]


def _places(rows: Tensor, chosen: Tensor | None, num_rows: int) -> Tensor:
    """Where among the chosen rows each of these is; -1 for rows of another shard."""
    here = (rows >= 0) & (rows < num_rows)
    places = rows if chosen is None else torch.searchsorted(chosen, rows)
    return torch.where(here, places, -1)


def cosine_logits(anchors: Tensor, proxies: Tensor, *, scale: float) -> Tensor:
    """(B, c) scaled cosines of unit anchors (B, D) to proxies (c, D) of any length."""
    return (scale * anchors) @ nn.functional.normalize(proxies.to(anchors.dtype), dim=-1).T

"""Losses over pairs: every anchor against its positives and its negatives."""

from typing import Annotated, Unpack

import torch
from torch import Tensor

from dml.losses.arguments import PositiveFloat, Range, Seed
from dml.losses.base import EmbeddingLoss, LossOptions
from dml.losses.blocks import AT_REST, Pairs, Totals, average_over_anchors, log_one_plus_sum_exp
from dml.losses.chance import Chance
from dml.losses.mining import (
    KeepMultiSimilarity,
    MinedLoss,
    Miner,
    Mining,
    Tuples,
    keep_all,
    miner_of,
)
from dml.losses.references import References
from dml.similarity import distances


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    squared: bool = True,
    mining: Mining | Miner = "all",
    chance: Chance | None = None,
    block_rows: int | None = None,
) -> Tensor:
    """Positives are drawn within one margin, negatives pushed beyond another; each kind's mean, summed.

    The mean is over the pairs that violate their margin: with K of B images per class there are B / K times
    more negative than positive pairs, most of them at rest.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        positive_margin: Euclidean distance below which positives rest.
        negative_margin: Euclidean distance beyond which negatives rest, (0, 2].
        squared: squares the hinges, as the paper; False is pytorch-metric-learning's.
        mining: which pairs count: a name of `dml.losses.mining.MINING`, or a miner.
        chance: of the miners that draw; None: always the same draws.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar. 0 with zero gradient when no pair violates its margin.

    Source: Hadsell, Chopra, LeCun 2006, "Dimensionality reduction by learning an invariant mapping", eq. 4,
    without its halves.
    """
    references = References.of(embeddings, labels, references)
    miner = miner_of(mining, dim=embeddings.shape[1])
    chance = chance or Chance.of_first_call(labels)

    def terms(pairs: Pairs) -> Totals:
        tuples = miner(pairs, chance)
        near, far = _chosen(tuples.is_kept, pairs.positives, 1.0), _within(tuples, negative_margin)
        hinges = [
            (distances(near) - positive_margin).clamp_min(0),
            (negative_margin - distances(far)).clamp_min(0),
        ]
        counts = torch.stack([torch.count_nonzero(hinge).to(hinge.dtype) for hinge in hinges])
        return Totals(torch.stack([(h.square() if squared else h).sum() for h in hinges]), counts)

    return average_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)


def _within(tuples: Tuples, distance: float) -> Tensor:
    """The similarities of the kept negatives that may be closer than a distance, a hair more than are."""
    if tuples.paired:
        return _chosen(tuples.is_kept, tuples.negatives, AT_REST)
    # Most negatives of a batch are at rest, and the few others are quickly gathered.
    is_within = tuples.negatives > 1 - 0.5 * distance**2 - 1e-6
    return _chosen(is_within, tuples.negatives, AT_REST)


def _chosen(mask: Tensor, values: Tensor, rest: float) -> Tensor:
    """The values under the mask; off the CPU, where counting them waits, all, with `rest` for the others."""
    return values[mask] if values.device.type == "cpu" else torch.where(mask, values, rest)


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
    block_rows: int | None = None,
) -> Tensor:
    """Soft sums of each anchor's mined positives and negatives, averaged over all anchors.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        alpha: weight of positives, > 0.
        beta: weight of negatives, > 0; the authors' code has 40.
        base: similarity around which pairs are weighed; the paper has 1, the authors' code 0.5.
        epsilon: the miner keeps negatives closer than the farthest positive and positives farther than the
            closest negative, by this slack of similarity; None: keeps every pair.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar. 0 with zero gradient when the miner keeps nothing.

    Source: Wang et al. 2019, arXiv:1904.06627, eq. 11-15; github.com/msight-tech/research-ms-loss.
    """
    references = References.of(embeddings, labels, references)
    miner = keep_all if epsilon is None else KeepMultiSimilarity(epsilon)
    chance = Chance.of_first_call(labels)

    def terms(pairs: Pairs) -> Totals:
        tuples = miner(pairs, chance)
        attracting = (-alpha * (pairs.positives - base)).masked_fill(~tuples.is_kept, -torch.inf)
        repelling = beta * (tuples.negatives - base)
        losses = log_one_plus_sum_exp(attracting) / alpha + log_one_plus_sum_exp(repelling) / beta
        return Totals(losses.sum()[None], losses.new_full((1,), len(losses)))

    return average_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)


class Contrastive(MinedLoss):
    """`contrastive_loss` as a module."""

    def __init__(
        self,
        positive_margin: Annotated[float, Range(ge=0, le=2)] = 0.0,
        negative_margin: Annotated[float, Range(gt=0, le=2)] = 1.0,
        *,
        squared: bool = True,
        mining: Mining | Miner = "all",
        seed: Seed = 0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(mining, seed, **options)
        self.positive_margin, self.negative_margin, self.squared = positive_margin, negative_margin, squared

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return contrastive_loss(
            embeddings,
            labels,
            references,
            positive_margin=self.positive_margin,
            negative_margin=self.negative_margin,
            squared=self.squared,
            mining=self.mining,
            chance=self.next_chance(),
        )


class MultiSimilarity(EmbeddingLoss):
    """`multi_similarity_loss` as a module."""

    def __init__(
        self,
        alpha: PositiveFloat = 2.0,
        beta: PositiveFloat = 50.0,
        base: Annotated[float, Range(ge=-1, le=1)] = 0.5,
        *,
        epsilon: Annotated[float, Range(ge=0, le=2)] | None = 0.1,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return multi_similarity_loss(
            embeddings,
            labels,
            references,
            alpha=self.alpha,
            beta=self.beta,
            base=self.base,
            epsilon=self.epsilon,
        )

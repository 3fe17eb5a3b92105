"""Losses over pairs: every anchor against its positives and its negatives."""

from functools import partial

import torch
from torch import Tensor, nn

from dml.losses.blocks import Pairs, log_one_plus_sum_exp, sum_over_anchors
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
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar. 0 with zero gradient when no pair violates its margin.

    Source: Hadsell, Chopra, LeCun 2006, "Dimensionality reduction by learning an invariant mapping", eq. 4,
    without its halves.
    """
    references = References.of(embeddings, labels, references)
    terms = partial(
        _contrastive_terms, positive_margin=positive_margin, negative_margin=negative_margin, squared=squared
    )
    totals = sum_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)
    return references.average(totals[:2], totals[2:]).sum()


def _contrastive_terms(
    pairs: Pairs, *, positive_margin: float, negative_margin: float, squared: bool
) -> Tensor:
    # Most negatives are at rest: only those that may not be are looked at, a hair more than will count.
    near = pairs.negatives & (pairs.similarities > 1 - 0.5 * negative_margin**2 - 1e-6)
    attracted = (distances(pairs.positive_similarities[pairs.positives]) - positive_margin).clamp_min(0)
    repelled = (negative_margin - distances(pairs.similarities[near])).clamp_min(0)
    num_active = [torch.count_nonzero(hinge).to(hinge.dtype) for hinge in (attracted, repelled)]
    hinges = [(hinge.square() if squared else hinge).sum() for hinge in (attracted, repelled)]
    return torch.stack(hinges + num_active)


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
    terms = partial(_multi_similarity_terms, alpha=alpha, beta=beta, base=base, epsilon=epsilon)
    totals = sum_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)
    return totals[0] / len(labels)


def _multi_similarity_terms(
    pairs: Pairs, *, alpha: float, beta: float, base: float, epsilon: float | None
) -> Tensor:
    positives, negatives = pairs.positives, pairs.negatives
    if epsilon is not None:
        positives, negatives = _mine_pairs(pairs, epsilon)
    attracting = (-alpha * (pairs.positive_similarities - base)).masked_fill(~positives, -torch.inf)
    repelling = (beta * (pairs.similarities - base)).masked_fill(~negatives, -torch.inf)
    losses = log_one_plus_sum_exp(attracting) / alpha + log_one_plus_sum_exp(repelling) / beta
    return losses.sum()[None]


@torch.no_grad()
def _mine_pairs(pairs: Pairs, epsilon: float) -> tuple[Tensor, Tensor]:
    """Masks of the positives and negatives that are hard relative to the anchor's other pairs."""
    farthest_positive = pairs.positive_similarities.masked_fill(~pairs.positives, torch.inf).amin(1, True)
    closest_negative = pairs.similarities.masked_fill(~pairs.negatives, -torch.inf).amax(1, True)
    positives = pairs.positives & (pairs.positive_similarities < closest_negative + epsilon)
    negatives = pairs.negatives & (pairs.similarities > farthest_positive - epsilon)
    return positives, negatives


class Contrastive(nn.Module):
    """`contrastive_loss` as a module."""

    def __init__(
        self, positive_margin: float = 0.0, negative_margin: float = 1.0, *, squared: bool = True
    ) -> None:
        super().__init__()
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin
        self.squared = squared

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return contrastive_loss(
            embeddings,
            labels,
            references,
            positive_margin=self.positive_margin,
            negative_margin=self.negative_margin,
            squared=self.squared,
        )


class MultiSimilarity(nn.Module):
    """`multi_similarity_loss` as a module."""

    def __init__(
        self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, *, epsilon: float | None = 0.1
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return multi_similarity_loss(
            embeddings,
            labels,
            references,
            alpha=self.alpha,
            beta=self.beta,
            base=self.base,
            epsilon=self.epsilon,
        )

"""Losses over what surrounds a pair or an anchor: lifted structure and ranked list."""

from typing import Annotated, Unpack

import torch
from torch import Tensor

from dml.losses.arguments import NonNegativeFloat, Range
from dml.losses.base import EmbeddingLoss, LossOptions
from dml.losses.blocks import (
    Pairs,
    Totals,
    average_over_anchors,
    log_sum_exp,
    of_every_anchor,
    total_and_count,
)
from dml.losses.references import References
from dml.similarity import distances


def lifted_structure_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    margin: float = 1.0,
    block_rows: int | None = None,
) -> Tensor:
    """Every positive pair against all negatives of both its ends, softly the closest; squared hinge.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        margin: alpha in the paper, of Euclidean distance.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar, half the mean over positive pairs. 0 with zero gradient when there is none with negatives.

    Raises:
        ValueError: references that do not contain the anchors, such as a memory's.

    Source: Oh Song et al. 2016, arXiv:1511.06452, eq. 4.
    """
    references = References.of(embeddings, labels, references).with_anchors("Lifted structure")

    def closest(pairs: Pairs) -> Tensor:
        return log_sum_exp(margin - distances(pairs.negatives))

    own = of_every_anchor(closest, embeddings, labels, references, block_rows=block_rows)
    of_all = _from_all_ranks(own, references)

    def terms(pairs: Pairs) -> Totals:
        of_anchor = closest(pairs)
        # A pair stands in two anchors' rows, in the other with this anchor's part as a constant: hence twice.
        of_anchor = (2 * of_anchor - of_anchor.detach())[:, None]
        of_other = of_all[pairs.columns]
        hinge = (torch.logaddexp(of_anchor, of_other) + distances(pairs.positives)).clamp_min(0)
        losses = 0.5 * hinge.square() * (pairs.num_negatives > 0)[:, None]
        return total_and_count(losses, pairs.is_positive)

    return average_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)


def _from_all_ranks(own: Tensor, references: References) -> Tensor:
    """(W*B,) every rank's values (B,), in rank order."""
    world_size = len(references.labels) // max(len(own), 1)
    everybody = own.new_zeros(len(references.labels))
    everybody[references.first_row : references.first_row + len(own)] = own
    return references.mean_over_ranks(everybody) * world_size


def ranked_list_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    boundary: float = 1.2,
    margin: float = 0.4,
    temperature: float = 10.0,
    negative_weight: float = 1.0,
    block_rows: int | None = None,
) -> Tensor:
    """Positives are drawn into a sphere, negatives pushed out of a larger one, the closest hardest.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        boundary: alpha in the paper: negatives rest beyond this Euclidean distance.
        margin: positives rest within boundary - margin.
        temperature: T in the paper: a negative's weight is exp(T (alpha - d)), without gradient; 10 for
            Stanford Online Products and CUB200-2011.
        negative_weight: lambda in the paper; pytorch-metric-learning weighs both sides with 1/2.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar, the mean over all anchors of the mean over their positives and the weighted mean over their
        negatives that are not at rest.

    Source: Wang et al. 2019, arXiv:1903.03238, eq. 6-12.
    """
    references = References.of(embeddings, labels, references)

    def terms(pairs: Pairs) -> Totals:
        attracted = (distances(pairs.positives) - (boundary - margin)).clamp_min(0) * pairs.is_positive
        num_attracted = torch.count_nonzero(attracted, 1).clamp_min(1)
        repelled = (boundary - distances(pairs.negatives)).clamp_min(0)
        with torch.no_grad():
            # Relative to the row's largest: from a temperature of 74 on, exp(T alpha) itself is infinite.
            weights = repelled - repelled.amax(1, keepdim=True)
            weights.mul_(temperature).exp_().mul_(repelled.sign())
            weights /= weights.sum(1, keepdim=True).clamp_min_(torch.finfo(weights.dtype).tiny)
        losses = attracted.sum(1) / num_attracted + negative_weight * (weights * repelled).sum(1)
        return Totals(losses.sum()[None], losses.new_full((1,), len(losses)))

    return average_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)


class LiftedStructure(EmbeddingLoss):
    """`lifted_structure_loss` as a module."""

    within_batch = True

    def __init__(
        self, margin: Annotated[float, Range(gt=0, le=2)] = 1.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.margin = margin

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return lifted_structure_loss(embeddings, labels, references, margin=self.margin)


class RankedList(EmbeddingLoss):
    """`ranked_list_loss` as a module."""

    def __init__(
        self,
        boundary: Annotated[float, Range(gt=0, le=2)] = 1.2,
        margin: Annotated[float, Range(ge=0, le=2)] = 0.4,
        *,
        temperature: NonNegativeFloat = 10.0,
        negative_weight: NonNegativeFloat = 1.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        if margin > boundary:
            raise ValueError(
                f"margin must be at most boundary, as no distance is below 0; got {margin} and {boundary}. "
                "Wang et al. have 0.4 and 1.2."
            )
        self.boundary, self.margin = boundary, margin
        self.temperature, self.negative_weight = temperature, negative_weight

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return ranked_list_loss(
            embeddings,
            labels,
            references,
            boundary=self.boundary,
            margin=self.margin,
            temperature=self.temperature,
            negative_weight=self.negative_weight,
        )

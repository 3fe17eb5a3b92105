"""Losses that weigh an anchor's pairs by a softmax: the hardest count most, all count a little."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Unpack

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dml.losses.arguments import NonNegativeFloat, PositiveFloat, Range
from dml.losses.base import EmbeddingLoss, LossOptions
from dml.losses.blocks import (
    Pairs,
    Totals,
    average_over_anchors,
    log_sum_exp,
    softplus,
    total_and_count,
    values_at_a_time,
)
from dml.losses.references import References
from dml.similarity import at_least_float32, distances, product

# 16 MiB of float32: N-pair keeps its logits for backward up to here.
_BLOCK_LOGITS, _LEAST_ROWS = 1 << 22, 32


def supervised_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    temperature: float = 0.1,
    block_rows: int | None = None,
) -> Tensor:
    """Each positive is told from all other images; averaged over an anchor's positives, then over anchors.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        temperature: divides similarities, > 0.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar, the mean over anchors that have a positive. 0 with zero gradient when none has.

    Source: Khosla et al. 2020, arXiv:2004.11362, eq. 2 (L_out).
    """
    references = References.of(embeddings, labels, references)
    terms = partial(_supervised_contrastive_terms, temperature=temperature)
    return average_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)


def _supervised_contrastive_terms(pairs: Pairs, *, temperature: float) -> Totals:
    near = pairs.positives / temperature
    of_positives = log_sum_exp(near.masked_fill(~pairs.is_positive, -torch.inf))
    of_negatives = log_sum_exp(pairs.negatives / temperature)
    # Of all others: log(e^a + e^b) = a + log(1 + e^(b - a)).
    of_others = of_positives + softplus(of_negatives - of_positives) * (pairs.num_negatives > 0)
    num_positives = pairs.is_positive.sum(1)
    mean_near = (near * pairs.is_positive).sum(1) / num_positives.clamp_min(1)
    return total_and_count(of_others - mean_near, num_positives > 0)


def nt_xent_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    temperature: float = 0.1,
    block_rows: int | None = None,
) -> Tensor:
    """Each positive is told from the anchor's negatives only; averaged over positive pairs. Also: InfoNCE.

    With one positive per anchor it is `supervised_contrastive_loss`.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        temperature: divides similarities, > 0.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar. 0 with zero gradient when no pair is positive.

    Source: Chen et al. 2020, arXiv:2002.05709, eq. 1; temperature of their table 5.
    """
    references = References.of(embeddings, labels, references)

    def terms(pairs: Pairs) -> Totals:
        return _told_apart(pairs, pairs.is_positive, 1 / temperature)

    return average_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)


@torch.no_grad()
def _told_apart(pairs: Pairs, counted: Tensor, scale: float) -> Totals:
    """-log of the softmax of each counted positive (A, P) among itself and the anchor's negatives."""
    peak = pairs.negatives.amax(1, keepdim=True)
    peak = torch.where(peak.isfinite(), peak, 0.0)
    exponentials = (pairs.negatives - peak).mul_(scale).exp_()
    total = exponentials.sum(1, keepdim=True)
    # Without negatives the gap is -inf: a certain positive, of loss 0, that is a pair and counts.
    gap = total.log() + scale * (peak - pairs.positives)
    weights = scale * gap.sigmoid() * counted
    of_negatives = weights.sum(1, keepdim=True) / total.clamp_min(torch.finfo(total.dtype).tiny)
    sums, counts, _ = total_and_count(softplus(gap), counted)
    return Totals(sums, counts, ((exponentials.mul_(of_negatives), -weights),))


def n_pair_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    scale: float = 1.0,
    l2: float = 0.005,
    block_rows: int | None = None,
) -> Tensor:
    """An anchor's one positive is told from one positive of every other class.

    A class's first image is the anchor of its second, its third of its fourth, and so on: with K = 2 the
    paper's batch. Negatives are all even images of other classes. Only these similarities are computed.

    Args:
        embeddings: (B, D) float, of any length: the paper does not normalise.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        scale: multiplies inner products. 1 leaves unit vectors an almost flat loss; they want 16 to 32.
        l2: weight of the mean squared length; the authors' code has 0.02 / 4.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar, the mean over anchors, and the penalty.

    Raises:
        ValueError: references that do not contain the anchors, such as a memory's.

    Source: Sohn 2016, "Improved deep metric learning with multi-class N-pair loss objective", NIPS, eq. 11.
    """
    references = References.of(embeddings, labels, references).with_anchors("N-pair")
    firsts, seconds = _pairs_in_turn(references.labels)
    local = firsts - references.first_row
    places = ((local >= 0) & (local < len(labels))).nonzero()[:, 0]
    anchors = scale * at_least_float32(embeddings).index_select(0, local[places])
    among = at_least_float32(references.embeddings).index_select(0, seconds)
    classes = references.labels[seconds]

    def of_block(rows: slice) -> Tensor:
        own = places[rows, None]
        # Of its own class an anchor meets its partner alone.
        left_out = (classes[own] == classes).scatter(1, own, False)
        logits = product(anchors[rows], among.T).masked_fill(left_out, -torch.inf)
        return nn.functional.cross_entropy(logits, places[rows], reduction="sum")

    most_values = values_at_a_time(embeddings.device, _BLOCK_LOGITS)
    size = block_rows or max(most_values // max(len(seconds), 1), _LEAST_ROWS)
    # A rank without anchors has a block of none: the others wait for it in the gather's backward.
    blocks = [slice(start, start + size) for start in range(0, max(len(places), 1), size)]
    if len(blocks) == 1:
        total = of_block(blocks[0])
    else:  # of several, each is computed again in backward
        parts = [checkpoint(of_block, rows, use_reentrant=False) for rows in blocks]
        total = sum(parts, anchors.new_zeros(()))
    penalty = l2 * at_least_float32(embeddings).square().sum(1).mean()
    return references.average(total, total.new_tensor(len(places))) + penalty


def _pairs_in_turn(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the firsts and of the seconds (M,): a class's first with its second, third with fourth."""
    in_order, order = labels.sort(stable=True)
    places = torch.arange(len(labels), device=labels.device)
    is_even = (places - torch.searchsorted(in_order, in_order)) % 2 == 0
    has_next = (is_even[:-1] & (in_order[1:] == in_order[:-1])).nonzero()[:, 0]
    return order[has_next], order[has_next + 1]


def circle_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    margin: float = 0.4,
    scale: float = 80.0,
    block_rows: int | None = None,
) -> Tensor:
    """Every similarity is pushed the harder, the farther it is from its optimum: 1 + m, or -m.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        margin: m; the paper has 0.4 for retrieval and 0.25 for faces.
        scale: gamma; the paper has 80 for retrieval and 256 for faces.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar, the mean over anchors that have a positive and a negative. 0 with zero gradient when none has.

    Source: Sun et al. 2020, arXiv:2002.10857, eq. 6-8; the weights carry no gradient, as in sec. 3.2.
    """
    references = References.of(embeddings, labels, references)
    terms = partial(_circle_terms, margin=margin, scale=scale)
    return average_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)


def _circle_terms(pairs: Pairs, *, margin: float, scale: float) -> Totals:
    near, far = pairs.positives, pairs.negatives
    attracting = -scale * (1 + margin - near.detach()).clamp_min(0) * (near - (1 - margin))
    # Not 0 where a negative is at its optimum: 0 times the -inf at rest is no number.
    weights = (far.detach() + margin).clamp_min_(1e-30).mul_(scale)
    return _both_kinds(pairs, attracting, weights * (far - margin), softplus)


def generalised_lifted_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: References | None = None,
    *,
    margin: float = 1.0,
    block_rows: int | None = None,
) -> Tensor:
    """Hinge on the soft maximum of an anchor's positive distances less the soft minimum of its negative ones.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        references: the global batch; None: the batch itself.
        margin: wanted gap of Euclidean distance.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar, the mean over anchors that have a positive and a negative. 0 with zero gradient when none has.

    Source: Hermans et al. 2017, arXiv:1703.07737, eq. 8, after Oh Song et al. 2016, arXiv:1511.06452.
    """
    references = References.of(embeddings, labels, references)
    terms = partial(_generalised_lifted_terms, margin=margin)
    return average_over_anchors(terms, embeddings, labels, references, block_rows=block_rows)


def _generalised_lifted_terms(pairs: Pairs, *, margin: float) -> Totals:
    return _both_kinds(pairs, distances(pairs.positives), margin - distances(pairs.negatives), torch.relu)


def _both_kinds(
    pairs: Pairs, attracting: Tensor, repelling: Tensor, penalty: Callable[[Tensor], Tensor]
) -> Totals:
    """`penalty` of the two soft maxima's sum, of anchors that have a positive and a negative."""
    attraction = log_sum_exp(attracting.masked_fill(~pairs.is_positive, -torch.inf))
    repulsion = log_sum_exp(repelling)
    valid = pairs.is_positive.any(1) & (pairs.num_negatives > 0)
    return total_and_count(penalty(attraction + repulsion), valid)


class SupCon(EmbeddingLoss):
    """`supervised_contrastive_loss` as a module."""

    def __init__(self, temperature: PositiveFloat = 0.1, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.temperature = temperature

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return supervised_contrastive_loss(embeddings, labels, references, temperature=self.temperature)


class NTXent(EmbeddingLoss):
    """`nt_xent_loss` as a module."""

    def __init__(self, temperature: PositiveFloat = 0.1, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.temperature = temperature

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return nt_xent_loss(embeddings, labels, references, temperature=self.temperature)


class NPair(EmbeddingLoss):
    """`n_pair_loss` as a module; by default of embeddings as they come, as the paper's formula."""

    within_batch = True

    def __init__(
        self, scale: PositiveFloat = 1.0, *, l2: NonNegativeFloat = 0.005, normalize: bool = False
    ) -> None:
        super().__init__(normalize=normalize)
        self.scale, self.l2 = scale, l2

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return n_pair_loss(embeddings, labels, references, scale=self.scale, l2=self.l2)


class Circle(EmbeddingLoss):
    """`circle_loss` as a module."""

    def __init__(
        self,
        margin: Annotated[float, Range(ge=0, le=1)] = 0.4,
        scale: PositiveFloat = 80.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.margin = margin
        self.scale = scale

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return circle_loss(embeddings, labels, references, margin=self.margin, scale=self.scale)


class GeneralisedLifted(EmbeddingLoss):
    """`generalised_lifted_loss` as a module."""

    def __init__(
        self, margin: Annotated[float, Range(gt=0, le=2)] = 1.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.margin = margin

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return generalised_lifted_loss(embeddings, labels, references, margin=self.margin)

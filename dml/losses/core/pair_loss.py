"""Losses over pairs: the similarity matrix by blocks of anchors; no list of pairs, no matrix for backward.

    loss = sum over t of  (sum over all anchors of sums[t]) / (sum over all anchors of counts[t])

A subclass of `PairLoss` computes `sums` and `counts` of one block of anchors, in `terms`. The gradient of a
block's sums at its similarities is taken at once, while they are in the cache, and multiplied into the
gradients of anchors and references: three products a block, memory O(block * R) instead of O(B * R), nothing
computed twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dml.losses.core.base import EmbeddingLoss
from dml.losses.core.blocks import block_rows
from dml.losses.core.references import References
from dml.losses.core.rng import CounterRNG
from dml.similarity import at_least_float32, without_autocast

# 1 MiB of float32: a handful of such blocks stays in the second-level cache. Below 32 rows the products of a
# block read the references more often than they compute with them. Measured in benchmarks/losses.py.
_BLOCK_VALUES, _LEAST_ROWS = 1 << 18, 32

MASKED = -torch.inf
"""The similarity in `Pairs.negatives` where a pair is not negative: its exp is 0."""


@dataclass(frozen=True)
class Pairs:
    """A block of A anchors against all R references; an anchor and itself are no pair."""

    negatives: Tensor
    """(A, R) similarities, `MASKED` where the reference is of the anchor's class or the anchor itself."""
    positives: Tensor
    """(A, P) similarities to the references of the anchor's class, padded to the largest class."""
    is_positive: Tensor
    """(A, P) bool: False for padding and for the anchor itself."""
    positive_index: Tensor
    """(A, P) int64, which references the positives are; for padding, any."""
    num_negatives: Tensor
    """(A,) int64, references of other classes."""
    has_same_class: Tensor
    """(A,) bool, whether any reference is of the anchor's class, the anchor itself included."""
    anchor_index: Tensor
    """(A,) int64, the anchors' rows in the global batch."""
    dim: int
    """D of the embeddings."""
    rng: CounterRNG
    """What miners draw with, by `anchor_index`."""
    occurrence: Callable[[], Tensor]
    """Returns (R,) int64: how many references of the same class come before each."""
    per_anchor: tuple[Tensor, ...] = ()
    """Each (A, ...): the block's rows of the tensors that a loss has for every anchor."""


Grads = tuple[Tensor | None, ...]
"""A sum's gradient at `negatives`, `positives` and each of `per_anchor`; None: it does not depend on it."""


class Totals(NamedTuple):
    """What a block adds to the loss: each sum is divided by the total of its count."""

    sums: Tensor
    """(T,), differentiable."""
    counts: Tensor
    """(T,), without gradient."""
    grads: tuple[Grads, ...] | None = None
    """Each sum's gradient, of a loss that computes it; None: autograd does."""


class PairLoss(EmbeddingLoss):
    """A loss over pairs; a subclass computes a block's part of it in `terms`."""

    def terms(self, pairs: Pairs) -> Totals:
        """Sums and counts of a block; sums may depend on `negatives`, `positives` and `per_anchor`."""
        raise NotImplementedError

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return average_over_anchors(self.terms, embeddings, labels, references)


def total_and_count(losses: Tensor, valid: Tensor) -> Totals:
    """The sum of the valid losses, and how many they are; each (1,)."""
    return Totals((losses * valid).sum()[None], valid.sum().to(losses.dtype)[None])


def average_over_anchors(
    terms: Callable[[Pairs], Totals],
    anchors: Tensor,
    labels: Tensor,
    references: References,
    *,
    per_anchor: tuple[Tensor, ...] = (),
    rng: CounterRNG | None = None,
) -> Tensor:
    """The sum over T of sum / count, both of all blocks of all ranks.

    Args:
        terms: a block's sums and counts.
        anchors: (A, D) float, unit length: rows of the references, or other samples than these.
        labels: (A,) int64 class ids.
        references: what the anchors are compared with.
        per_anchor: each (A, ...), differentiable: passed to `terms` with the anchors' blocks.
        rng: for miners that draw; None: the first draws of seed 0.

    Returns:
        Scalar: this rank's part, of which the mean over ranks is the average over the global batch. 0 with
        zero gradient where nothing is counted.
    """
    sums, counts = _Sums.apply(
        terms,
        _Blocks(labels, references, rng),
        at_least_float32(anchors),
        at_least_float32(references.embeddings),
        *(at_least_float32(values) for values in per_anchor),
    )
    return references.average(sums, counts).sum()


@torch.no_grad()
def map_anchors(
    values: Callable[[Pairs], Tensor], anchors: Tensor, labels: Tensor, references: References
) -> Tensor:
    """(A,) what `values` returns for each block, (block,), without gradient."""
    blocks = _Blocks(labels, references, None)
    anchors, compared = at_least_float32(anchors), at_least_float32(references.embeddings)
    with without_autocast(anchors.device):
        return torch.cat([values(blocks.pairs(rows, anchors, compared, ())) for rows in blocks.slices()])


class _Blocks:
    """Cuts anchors into blocks and makes the `Pairs` of each."""

    def __init__(self, labels: Tensor, references: References, rng: CounterRNG | None) -> None:
        self.references = references
        self.rng = rng or CounterRNG(0, torch.zeros((), dtype=torch.int64, device=labels.device))
        sorted_labels, self.order = references.labels.sort(stable=True)
        self.first = torch.searchsorted(sorted_labels, labels)
        self.last = torch.searchsorted(sorted_labels, labels, right=True)
        # The one thing waited for: it is the shape of all that is made for positives.
        self.most = max(int((self.last - self.first).max()), 1) if len(labels) else 1
        self.rows = block_rows(labels.device, len(self.order), on_cpu=_BLOCK_VALUES, at_least=_LEAST_ROWS)
        local = torch.arange(len(labels), device=labels.device)
        self.anchor_index = local + references.first_row
        self.anchor_column = self.anchor_index if references.contain_anchors else torch.full_like(local, -1)

    def slices(self) -> list[slice]:
        starts = range(0, max(len(self.anchor_index), 1), self.rows)
        return [slice(start, start + self.rows) for start in starts]

    def pairs(
        self, rows: slice, anchors: Tensor, references: Tensor, per_anchor: tuple[Tensor, ...]
    ) -> Pairs:
        similarities = anchors[rows] @ references.T
        first, last = self.first[rows, None], self.last[rows, None]
        index = first + torch.arange(self.most, device=first.device)
        # Padding repeats a class's last reference; a class without references has columns of no meaning.
        columns = self.order[torch.minimum(index, (last - 1).clamp_min(0))]
        positives = similarities.gather(1, columns)
        # Written into their columns: masking the whole matrix would cost as much as a product.
        negatives = similarities.scatter_(1, columns, torch.where(first < last, MASKED, positives))
        return Pairs(
            negatives=negatives,
            positives=positives,
            is_positive=(index < last) & (columns != self.anchor_column[rows, None]),
            positive_index=columns,
            num_negatives=len(self.order) - (last - first)[:, 0],
            has_same_class=(first < last)[:, 0],
            anchor_index=self.anchor_index[rows],
            dim=anchors.shape[1],
            rng=self.rng,
            occurrence=self.occurrence,
            per_anchor=per_anchor,
        )

    def occurrence(self) -> Tensor:
        labels = self.references.with_anchors("N-pair mining").labels
        sorted_labels = labels[self.order]
        rank = torch.arange(len(labels), device=labels.device)
        occurrence = rank - torch.searchsorted(sorted_labels, sorted_labels)
        return torch.empty_like(rank).scatter_(0, self.order, occurrence)


class _Sums(torch.autograd.Function):
    """All blocks' totals; each block's gradients are taken in forward, apart for every sum."""

    @staticmethod
    def forward(
        ctx: Any,
        terms: Callable[[Pairs], Totals],
        blocks: _Blocks,
        anchors: Tensor,
        references: Tensor,
        *per_anchor: Tensor,
    ) -> tuple[Tensor, Tensor]:
        needs_references = ctx.needs_input_grad[3]
        gradients: list[_Gradients] = []
        slices = blocks.slices()
        numbers: Tensor | None = None
        with without_autocast(anchors.device):
            for block, rows in enumerate(slices):
                pairs = blocks.pairs(rows, anchors, references, tuple(values[rows] for values in per_anchor))
                grads: Sequence[Grads] = ()
                if any(ctx.needs_input_grad[2:]):
                    totals, grads = _with_grads(terms, pairs)
                else:
                    totals = terms(pairs)
                # The numbers alone, in a tensor made once: totals would keep their gradients, and small
                # tensors of each block, lying between freed blocks, would keep that memory from reuse.
                if numbers is None:
                    numbers = totals.sums.new_empty(len(slices), 2, len(totals.sums))
                numbers[block, 0], numbers[block, 1] = totals.sums.detach(), totals.counts
                gradients = gradients or [
                    _Gradients(anchors, references if needs_references else None, per_anchor) for _ in grads
                ]
                for gradient, grad in zip(gradients, grads, strict=True):
                    gradient.add(rows, grad, pairs, anchors, references)
        ctx.num_per_anchor = len(per_anchor)
        ctx.save_for_backward(*(part for gradient in gradients for part in gradient.parts()))
        assert numbers is not None, "there is at least one block"
        sums, counts = numbers.detach().sum(0)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        size = 2 + ctx.num_per_anchor
        parts = [ctx.saved_tensors[start::size] for start in range(size)]
        grad_anchors, grad_references, *grad_per_anchor = (_weighted(grad_sums, each) for each in parts)
        needs_references = ctx.needs_input_grad[3]
        return None, None, grad_anchors, grad_references if needs_references else None, *grad_per_anchor


def _weighted(weights: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    total = values[0] * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total.addcmul_(value, weight)
    return total


def _with_grads(terms: Callable[[Pairs], Totals], pairs: Pairs) -> tuple[Totals, Sequence[Grads]]:
    leaves = [leaf.requires_grad_() for leaf in (pairs.negatives, pairs.positives, *pairs.per_anchor)]
    with torch.enable_grad():
        totals = terms(pairs)
        if totals.grads is not None:
            return totals, totals.grads
        last = len(totals.sums) - 1
        return totals, [
            torch.autograd.grad(value, leaves, retain_graph=number < last, allow_unused=True)
            if value.requires_grad
            else (None,) * len(leaves)
            for number, value in enumerate(totals.sums)
        ]


class _Gradients:
    """The gradient of one sum at anchors, references and `per_anchor`, collected block by block."""

    def __init__(self, anchors: Tensor, references: Tensor | None, per_anchor: tuple[Tensor, ...]) -> None:
        self.anchors = torch.zeros_like(anchors)
        self.references = None if references is None else torch.zeros_like(references)
        self.per_anchor = [torch.zeros_like(values) for values in per_anchor]

    def parts(self) -> list[Tensor]:
        references = self.anchors.new_empty(0) if self.references is None else self.references
        return [self.anchors, references, *self.per_anchor]

    def add(self, rows: slice, grads: Grads, pairs: Pairs, anchors: Tensor, references: Tensor) -> None:
        grad_negatives, grad_positives, *grad_per_anchor = grads
        if grad_negatives is None:
            grad_similarities = torch.zeros_like(pairs.negatives)
        else:
            grad_similarities = grad_negatives.contiguous()
            # Where `negatives` is masked, nothing flows.
            masked = grad_similarities.gather(1, pairs.positive_index)
            masked = masked.masked_fill_(pairs.has_same_class[:, None], 0)
            grad_similarities.scatter_(1, pairs.positive_index, masked)
        if grad_positives is not None:
            grad_positives = grad_positives.masked_fill(~pairs.is_positive, 0)
            grad_similarities.scatter_add_(1, pairs.positive_index, grad_positives)
        torch.mm(grad_similarities, references, out=self.anchors[rows])
        if self.references is not None:
            self.references.addmm_(grad_similarities.T, anchors[rows])
        for total, part in zip(self.per_anchor, grad_per_anchor, strict=True):
            if part is not None:
                total[rows] = part

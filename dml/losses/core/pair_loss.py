"""Base class of losses over pairs: computes the similarity matrix in blocks of anchors, forward and backward.

    loss = sum over t of  (sum over all anchors of sums[t]) / (sum over all anchors of counts[t])

A subclass of `PairLoss` computes `sums` and `counts` of one block of anchors in `terms`. The gradient of a
block with respect to its similarities is computed in forward, while the block is in the cache, and added to
the gradients of anchors and references: three matrix products per block, memory O(block * R) instead of
O(B * R), and no recomputation. Pairs are never listed.
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

# 1 MiB of float32: a few such blocks fit the second-level cache. With fewer than 32 rows, the matrix products
# of a block are limited by reading the references. Measured in benchmarks/losses.py.
_BLOCK_VALUES, _LEAST_ROWS = 1 << 18, 32

MASKED = -torch.inf
"""The value in `Pairs.negatives` where the reference is not a negative: its exp is 0."""


@dataclass(frozen=True)
class Pairs:
    """A block of A anchors against all R references; an anchor and itself are not a pair."""

    negatives: Tensor
    """(A, R) similarities, `MASKED` where the reference has the anchor's class or is the anchor itself."""
    positives: Tensor
    """(A, P) similarities to the references of the anchor's class, padded to the largest class."""
    is_positive: Tensor
    """(A, P) bool: False for padding and for the anchor itself."""
    positive_index: Tensor
    """(A, P) int64, rows of the positives in the references; arbitrary for padding."""
    num_negatives: Tensor
    """(A,) int64, number of references of other classes."""
    has_same_class: Tensor
    """(A,) bool, whether any reference has the anchor's class, including the anchor itself."""
    anchor_index: Tensor
    """(A,) int64, the anchors' rows in the global batch."""
    dim: int
    """D of the embeddings."""
    rng: CounterRNG
    """Random numbers for miners, indexed by `anchor_index`."""
    occurrence: Callable[[], Tensor]
    """Returns (R,) int64: the number of earlier references of the same class."""
    per_anchor: tuple[Tensor, ...] = ()
    """Each (A, ...): values of the loss for every anchor, the rows of this block."""


Grads = tuple[Tensor | None, ...]
"""Gradient of one sum with respect to `negatives`, `positives` and each of `per_anchor`; None: zero."""


class Totals(NamedTuple):
    """The contribution of a block to the loss: each sum is later divided by its total count."""

    sums: Tensor
    """(T,), differentiable."""
    counts: Tensor
    """(T,), without gradient."""
    grads: tuple[Grads, ...] | None = None
    """The gradient of each sum, if the loss computes it itself; None: autograd computes it."""


class PairLoss(EmbeddingLoss):
    """A loss over pairs; a subclass computes the contribution of a block in `terms`."""

    def terms(self, pairs: Pairs) -> Totals:
        """Sums and counts of a block; sums may depend on `negatives`, `positives` and `per_anchor`."""
        raise NotImplementedError

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return average_over_anchors(self.terms, embeddings, labels, references)


def total_and_count(losses: Tensor, valid: Tensor) -> Totals:
    """The sum and the number of the valid losses; each (1,)."""
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
    """The sum over T of sum / count, each added up over all blocks and ranks.

    Args:
        terms: computes the sums and counts of a block.
        anchors: (A, D) float, unit length: rows of the references, or other samples.
        labels: (A,) int64 class ids.
        references: the samples that the anchors are compared with.
        per_anchor: each (A, ...), differentiable; `terms` gets the rows of its block.
        rng: random numbers for miners; None: those of seed 0, call 0.

    Returns:
        Scalar for this rank; its mean over ranks is the average over the global batch. 0 with zero gradient
        if all counts are 0.
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
    """(A,) the concatenated results (block,) of `values` for all blocks, without gradient."""
    blocks = _Blocks(labels, references, None)
    anchors, gallery = at_least_float32(anchors), at_least_float32(references.embeddings)
    with without_autocast(anchors.device):
        return torch.cat([values(blocks.pairs(rows, anchors, gallery, ())) for rows in blocks.slices()])


class _Blocks:
    """Splits anchors into blocks and computes the `Pairs` of each."""

    def __init__(self, labels: Tensor, references: References, rng: CounterRNG | None) -> None:
        self.references = references
        self.rng = rng or CounterRNG(0, torch.zeros((), dtype=torch.int64, device=labels.device))
        sorted_labels, self.order = references.labels.sort(stable=True)
        self.first = torch.searchsorted(sorted_labels, labels)
        self.last = torch.searchsorted(sorted_labels, labels, right=True)
        # The only synchronization with a GPU: this number is the width P of all tensors of positives.
        self.num_slots = max(int((self.last - self.first).max()), 1) if len(labels) else 1
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
        index = first + torch.arange(self.num_slots, device=first.device)
        # Padding repeats the last reference of the class; without references the columns are arbitrary.
        columns = self.order[torch.minimum(index, (last - 1).clamp_min(0))]
        positives = similarities.gather(1, columns)
        # Written only into these columns: masking the whole matrix would cost as much as a matrix product.
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
    """The totals of all blocks; forward also computes the gradients, separately for every sum."""

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
        block_totals: Tensor | None = None
        with without_autocast(anchors.device):
            for block, rows in enumerate(slices):
                pairs = blocks.pairs(rows, anchors, references, tuple(values[rows] for values in per_anchor))
                grads: Sequence[Grads] = ()
                if any(ctx.needs_input_grad[2:]):
                    totals, grads = _with_grads(terms, pairs)
                else:
                    totals = terms(pairs)
                # Copied into one tensor: a list of totals would keep their gradients alive, and small tensors
                # allocated between freed blocks would fragment the memory.
                if block_totals is None:
                    block_totals = totals.sums.new_empty(len(slices), 2, len(totals.sums))
                block_totals[block, 0], block_totals[block, 1] = totals.sums.detach(), totals.counts
                gradients = gradients or [
                    _Gradients(anchors, references if needs_references else None, per_anchor) for _ in grads
                ]
                for gradient, grad in zip(gradients, grads, strict=True):
                    gradient.add(rows, grad, pairs, anchors, references)
        ctx.num_per_anchor = len(per_anchor)
        ctx.save_for_backward(*(tensor for gradient in gradients for tensor in gradient.tensors()))
        assert block_totals is not None, "there is at least one block"
        sums, counts = block_totals.detach().sum(0)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        size = 2 + ctx.num_per_anchor
        by_input = [ctx.saved_tensors[start::size] for start in range(size)]
        grad_anchors, grad_references, *grad_per_anchor = (
            _weighted_sum(grad_sums, tensors) for tensors in by_input
        )
        needs_references = ctx.needs_input_grad[3]
        return None, None, grad_anchors, grad_references if needs_references else None, *grad_per_anchor


def _weighted_sum(weights: Tensor, values: tuple[Tensor, ...]) -> Tensor:
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
    """Gradient of one sum with respect to anchors, references and `per_anchor`, accumulated over blocks."""

    def __init__(self, anchors: Tensor, references: Tensor | None, per_anchor: tuple[Tensor, ...]) -> None:
        self.anchors = torch.zeros_like(anchors)
        self.references = None if references is None else torch.zeros_like(references)
        self.per_anchor = [torch.zeros_like(values) for values in per_anchor]

    def tensors(self) -> list[Tensor]:
        references = self.anchors.new_empty(0) if self.references is None else self.references
        return [self.anchors, references, *self.per_anchor]

    def add(self, rows: slice, grads: Grads, pairs: Pairs, anchors: Tensor, references: Tensor) -> None:
        grad_negatives, grad_positives, *grad_per_anchor = grads
        if grad_negatives is None:
            grad_similarities = torch.zeros_like(pairs.negatives)
        else:
            grad_similarities = grad_negatives.contiguous()
            # No gradient where `negatives` is masked.
            masked = grad_similarities.gather(1, pairs.positive_index)
            masked = masked.masked_fill_(pairs.has_same_class[:, None], 0)
            grad_similarities.scatter_(1, pairs.positive_index, masked)
        if grad_positives is not None:
            grad_positives = grad_positives.masked_fill(~pairs.is_positive, 0)
            grad_similarities.scatter_add_(1, pairs.positive_index, grad_positives)
        torch.mm(grad_similarities, references, out=self.anchors[rows])
        if self.references is not None:
            self.references.addmm_(grad_similarities.T, anchors[rows])
        for total, grad in zip(self.per_anchor, grad_per_anchor, strict=True):
            if grad is not None:
                total[rows] = grad

"""The similarity matrix in blocks of anchor rows: no list of tuples, no matrix kept for backward.

A loss says what one block of anchors adds to its totals; here the blocks are cut, and beyond the first they
are recomputed in backward, so that memory is O(block * R) and not O(B * R).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dml.losses.references import References
from dml.similarity import cosine_similarities

# 4 MiB of float32: a handful of such blocks stays in the last-level cache. Measured in benchmarks/losses.py.
_BLOCK_SIMILARITIES = 1 << 20


@dataclass(frozen=True)
class Pairs:
    """A block of A anchors against all R references; an anchor's pair with itself is neither kind."""

    similarities: Tensor
    """(A, R) float32 or float64."""
    negatives: Tensor
    """(A, R) bool."""
    positive_similarities: Tensor
    """(A, P) similarities to the references of the anchor's class, padded to the largest class."""
    positives: Tensor
    """(A, P) bool: False for padding and for the anchor itself."""


def sum_over_anchors(
    terms: Callable[[Pairs], Tensor],
    anchors: Tensor,
    labels: Tensor,
    references: References,
    *,
    anchors_are_references: bool = True,
    block_rows: int | None = None,
) -> Tensor:
    """The sum over blocks of anchors of what `terms` returns for each.

    Args:
        terms: a block's totals, (T,), differentiable; called again for the same block in backward.
        anchors: (A, D) float, unit length.
        labels: (A,) int64 class ids.
        references: what the anchors are compared with.
        anchors_are_references: whether anchor i is reference `first_row + i`, and no pair with itself.
        block_rows: anchors at a time; None: as many as give 2**20 similarities.

    Returns:
        (T,) totals.
    """
    own = torch.arange(len(anchors), device=anchors.device) + references.first_row
    own = own if anchors_are_references else torch.full_like(own, -1)
    order, first, last = _classes(labels, references.labels)
    width = torch.arange(max(int((last - first).max()), 1), device=anchors.device)

    def block(rows: slice) -> Tensor:
        places = first[rows, None] + width
        columns = order[places.clamp_max(len(order) - 1)]
        similarities = cosine_similarities(anchors[rows], references.embeddings)
        pairs = Pairs(
            similarities=similarities,
            negatives=labels[rows, None] != references.labels,
            positive_similarities=similarities.gather(1, columns),
            positives=(places < last[rows, None]) & (columns != own[rows, None]),
        )
        return terms(pairs)

    size = block_rows or max(_BLOCK_SIMILARITIES // len(references.labels), 1)
    if size >= len(anchors):
        return block(slice(None))
    cuts = [slice(start, start + size) for start in range(0, len(anchors), size)]
    totals = [checkpoint(block, rows, use_reentrant=False, preserve_rng_state=False) for rows in cuts]
    return torch.stack(totals).sum(0)


def _classes(labels: Tensor, reference_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reference rows sorted by class, and where in them each anchor's class begins and ends."""
    in_order, order = reference_labels.sort(stable=True)
    return order, torch.searchsorted(in_order, labels), torch.searchsorted(in_order, labels, right=True)


def log_sum_exp(values: Tensor) -> Tensor:
    """log(sum exp(values)) of every row, (A, R) to (A,); -inf adds nothing, a row of nothing else is 0."""
    peak = values.detach().amax(1, keepdim=True)
    peak = torch.where(peak.isfinite(), peak, 0.0)
    total = (values - peak).exp().sum(1)
    return torch.where(total > 0, total, 1.0).log() + peak[:, 0]


def softplus(values: Tensor) -> Tensor:
    """log(1 + exp(values)); same shape. torch's own is linear above 20, which float64 can see."""
    return -torch.nn.functional.logsigmoid(-values)


def log_one_plus_sum_exp(values: Tensor) -> Tensor:
    """log(1 + sum exp(values)) of every row, (A, R) to (A,); -inf adds nothing and gets no gradient."""
    peak = values.detach().amax(1, keepdim=True).clamp_min(0)
    return ((values - peak).exp().sum(1) + (-peak[:, 0]).exp()).log() + peak[:, 0]

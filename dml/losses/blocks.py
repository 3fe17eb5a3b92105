"""The similarity matrix in blocks of anchor rows: no list of tuples, no matrix kept for backward.

A loss says what one block of anchors adds to its totals. Its gradient at the block's similarities is taken at
once, while they are in the cache, and folded into the gradients of anchors and references: memory is
O(block * R), not O(B * R), and nothing is computed twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dml.losses.references import References
from dml.similarity import at_least_float32, without_autocast

# 1 MiB of float32: a handful of such blocks stays in the second-level cache. Below 32 rows the products of a
# block read the references more often than they compute with them. Measured in benchmarks/losses.py.
_BLOCK_SIMILARITIES, _LEAST_ROWS = 1 << 18, 32
# 256 MiB of float32; of the half dozen that live at once, 1.5 GiB. A GPU has no cache to fit, but every
# launch costs microseconds: at B = 16,384 MultiSimilarity takes 570 operators in such blocks, else 50,000.
_ACCELERATOR_VALUES = 1 << 26

AT_REST = -torch.inf
"""The similarity that stands in the matrix where a pair is not negative: it adds nothing to sums of exp."""


def values_at_a_time(device: torch.device, on_cpu: int) -> int:
    """How many values a block may have: what a CPU's cache holds, or, for few launches, much more."""
    return on_cpu if device.type == "cpu" else _ACCELERATOR_VALUES


@dataclass(frozen=True)
class Pairs:
    """A block of A anchors against all R references; an anchor's pair with itself is neither kind."""

    negatives: Tensor
    """(A, R) similarities, `AT_REST` where the reference is of the anchor's class or the anchor itself."""
    positives: Tensor
    """(A, P) similarities to the references of the anchor's class, padded to the largest class."""
    is_positive: Tensor
    """(A, P) bool: False for padding and for the anchor itself."""
    columns: Tensor
    """(A, P) int64, which references those are; of padding, any."""
    num_negatives: Tensor
    """(A,) int64, references of other classes."""
    has_class: Tensor
    """(A,) bool, whether any reference is of the anchor's class, the anchor itself included."""
    rows: Tensor
    """(A,) int64, where the anchors stand among all ranks' anchors."""
    turns: Callable[[], Tensor]
    """Gives (R,) int64: whether a reference is its class's first (0), second (1) and so on."""
    own: tuple[Tensor, ...] = ()
    """Each (A, ...): the block's part of what the loss has for every anchor."""


Slope = tuple[Tensor | None, ...]
"""A sum's gradient at `negatives`, `positives` and each of `own`; None where it does not depend on it."""


class Totals(NamedTuple):
    """What a block adds to the loss: each sum is divided by the total of its count."""

    sums: Tensor
    """(T,), differentiable."""
    counts: Tensor
    """(T,), without gradient."""
    slopes: tuple[Slope, ...] | None = None
    """Each sum's gradient, of a loss that knows it; None: autograd finds it."""


def average_over_anchors(
    terms: Callable[[Pairs], Totals],
    anchors: Tensor,
    labels: Tensor,
    references: References,
    *,
    own: tuple[Tensor, ...] = (),
    block_rows: int | None = None,
) -> Tensor:
    """The sum over T of sum / count, both of all blocks of all ranks.

    Args:
        terms: a block's sums and counts; sums may depend on `negatives`, `positives` and `own`.
        anchors: (A, D) float, unit length; the references' rows from `first_row`, or strangers to them.
        labels: (A,) int64 class ids.
        references: what the anchors are compared with.
        own: each (A, ...), differentiable: handed to `terms` in the anchors' blocks.
        block_rows: anchors at a time; None: as many as stay in a CPU's cache, or fill 256 MiB of a GPU.

    Returns:
        Scalar: this rank's part, of which the mean over ranks is the average over the global batch. 0 with
        zero gradient where nothing is counted.
    """
    sums, counts = _Sums.apply(
        terms,
        _Cut(labels, references, block_rows),
        at_least_float32(anchors),
        at_least_float32(references.embeddings),
        *(at_least_float32(value) for value in own),
    )
    return references.average(sums, counts).sum()


@torch.no_grad()
def of_every_anchor(
    value: Callable[[Pairs], Tensor],
    anchors: Tensor,
    labels: Tensor,
    references: References,
    *,
    block_rows: int | None = None,
) -> Tensor:
    """(A,) what `value` gives for each block, (rows,), without gradient."""
    cut = _Cut(labels, references, block_rows)
    anchors, compared = at_least_float32(anchors), at_least_float32(references.embeddings)
    with without_autocast(anchors.device):
        return torch.cat([value(cut.pairs(rows, anchors, compared, ())) for rows in cut.slices()])


class _Cut:
    """Cuts anchors into blocks and gives each as `Pairs`."""

    def __init__(
        self,
        labels: Tensor,
        references: References,
        block_rows: int | None,
    ) -> None:
        self.references = references
        in_order, self.order = references.labels.sort(stable=True)
        self.first = torch.searchsorted(in_order, labels)
        self.last = torch.searchsorted(in_order, labels, right=True)
        # The one thing waited for: it is the shape of all that is made for positives.
        self.most = max(int((self.last - self.first).max()), 1) if len(labels) else 1
        most_values = values_at_a_time(labels.device, _BLOCK_SIMILARITIES)
        self.block_rows = block_rows or max(most_values // max(len(self.order), 1), _LEAST_ROWS)
        own = torch.arange(len(labels), device=labels.device)
        self.rows = own + references.first_row
        self.own_columns = self.rows if references.contain_anchors else torch.full_like(own, -1)

    def slices(self) -> list[slice]:
        starts = range(0, max(len(self.rows), 1), self.block_rows)
        return [slice(at, at + self.block_rows) for at in starts]

    def pairs(self, rows: slice, anchors: Tensor, references: Tensor, own: tuple[Tensor, ...]) -> Pairs:
        similarities = anchors[rows] @ references.T
        first, last = self.first[rows, None], self.last[rows, None]
        places = first + torch.arange(self.most, device=first.device)
        # Padding repeats a class's last reference; a class without references has columns of no meaning.
        columns = self.order[torch.minimum(places, (last - 1).clamp_min(0))]
        positives = similarities.gather(1, columns)
        # Written into their places: masking the whole matrix would cost as much as a product.
        negatives = similarities.scatter_(1, columns, torch.where(first < last, AT_REST, positives))
        return Pairs(
            negatives=negatives,
            positives=positives,
            is_positive=(places < last) & (columns != self.own_columns[rows, None]),
            columns=columns,
            num_negatives=len(self.order) - (last - first)[:, 0],
            has_class=(first < last)[:, 0],
            rows=self.rows[rows],
            turns=self.turns,
            own=own,
        )

    def turns(self) -> Tensor:
        labels = self.references.with_anchors("N-pair mining").labels
        in_order = labels[self.order]
        places = torch.arange(len(labels), device=labels.device)
        turns = places - torch.searchsorted(in_order, in_order)
        return torch.empty_like(places).scatter_(0, self.order, turns)


class _Sums(torch.autograd.Function):
    """All blocks' totals; each block's gradients are taken in forward, apart for every sum."""

    @staticmethod
    def forward(
        ctx: Any,
        terms: Callable[[Pairs], Totals],
        cut: _Cut,
        anchors: Tensor,
        references: Tensor,
        *own: Tensor,
    ) -> tuple[Tensor, Tensor]:
        _, _, of_anchors, of_references, *of_own = ctx.needs_input_grad
        gradients: list[_Gradients] = []
        slices = cut.slices()
        numbers: Tensor | None = None
        with without_autocast(anchors.device):
            for block, rows in enumerate(slices):
                pairs = cut.pairs(rows, anchors, references, tuple(value[rows] for value in own))
                slopes: Sequence[Slope] = ()
                if of_anchors or of_references or any(of_own):
                    totals, slopes = _with_slopes(terms, pairs)
                else:
                    totals = terms(pairs)
                # The numbers alone, in a place made once: totals would keep their slopes, and small tensors
                # of each block, lying between freed blocks, would keep that memory from being used again.
                if numbers is None:
                    numbers = totals.sums.new_empty(len(slices), 2, len(totals.sums))
                numbers[block, 0], numbers[block, 1] = totals.sums.detach(), totals.counts
                gradients = gradients or [
                    _Gradients(anchors, references if of_references else None, own) for _ in slopes
                ]
                for gradient, slope in zip(gradients, slopes, strict=True):
                    gradient.add(rows, slope, pairs, anchors, references)
        ctx.num_own = len(own)
        ctx.save_for_backward(*(part for gradient in gradients for part in gradient.parts()))
        assert numbers is not None, "there is at least one block"
        sums, counts = numbers.detach().sum(0)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sums: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        size = 2 + ctx.num_own
        parts = [ctx.saved_tensors[at::size] for at in range(size)]
        of_anchors, of_references, *of_own = (_weighted(of_sums, of_each) for of_each in parts)
        return None, None, of_anchors, of_references if ctx.needs_input_grad[3] else None, *of_own


def _weighted(weights: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    total = values[0] * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total.addcmul_(value, weight)
    return total


def _with_slopes(terms: Callable[[Pairs], Totals], pairs: Pairs) -> tuple[Totals, Sequence[Slope]]:
    leaves = [leaf.requires_grad_() for leaf in (pairs.negatives, pairs.positives, *pairs.own)]
    with torch.enable_grad():
        totals = terms(pairs)
        if totals.slopes is not None:
            return totals, totals.slopes
        last = len(totals.sums) - 1
        return totals, [
            torch.autograd.grad(value, leaves, retain_graph=at < last, allow_unused=True)
            if value.requires_grad
            else (None,) * len(leaves)
            for at, value in enumerate(totals.sums)
        ]


class _Gradients:
    """The gradient of one sum at anchors, references and `own`, collected block by block."""

    def __init__(self, anchors: Tensor, references: Tensor | None, own: tuple[Tensor, ...]) -> None:
        self.anchors = torch.zeros_like(anchors)
        self.references = None if references is None else torch.zeros_like(references)
        self.own = [torch.zeros_like(value) for value in own]

    def parts(self) -> list[Tensor]:
        references = self.anchors.new_empty(0) if self.references is None else self.references
        return [self.anchors, references, *self.own]

    def add(self, rows: slice, slope: Slope, pairs: Pairs, anchors: Tensor, references: Tensor) -> None:
        at_negatives, at_positives, *at_own = slope
        similarities = (
            torch.zeros_like(pairs.negatives) if at_negatives is None else at_negatives.contiguous()
        )
        columns = pairs.columns
        if at_negatives is not None:  # where nothing negative stands, nothing flows
            of_columns = similarities.gather(1, columns).masked_fill_(pairs.has_class[:, None], 0)
            similarities.scatter_(1, columns, of_columns)
        if at_positives is not None:
            similarities.scatter_add_(1, columns, at_positives.masked_fill(~pairs.is_positive, 0))
        torch.mm(similarities, references, out=self.anchors[rows])
        if self.references is not None:
            self.references.addmm_(similarities.T, anchors[rows])
        for total, part in zip(self.own, at_own, strict=True):
            if part is not None:
                total[rows] = part


class _LogSumExp(torch.autograd.Function):
    """log(floor + sum exp(values)) of every row; its gradient is one product with what forward left."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, floor: float) -> Tensor:
        peak = values.amax(1, keepdim=True)
        peak = peak.clamp_min(0) if floor else torch.where(peak.isfinite(), peak, 0.0)
        exponentials = (values - peak).exp_()
        total = exponentials.sum(1)
        if floor:
            total += floor * (-peak[:, 0]).exp()
        ctx.save_for_backward(exponentials, total)
        return torch.where(total > 0, total, 1.0).log() + peak[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        exponentials, total = ctx.saved_tensors
        weights = gradient / torch.where(total > 0, total, 1.0)
        return exponentials * weights[:, None], None


def log_sum_exp(values: Tensor) -> Tensor:
    """log(sum exp(values)) of every row, (A, R) to (A,); -inf adds nothing, a row of nothing else is 0."""
    found: Tensor = _LogSumExp.apply(values, 0.0)
    return found


def log_one_plus_sum_exp(values: Tensor) -> Tensor:
    """log(1 + sum exp(values)) of every row, (A, R) to (A,); -inf adds nothing and gets no gradient."""
    found: Tensor = _LogSumExp.apply(values, 1.0)
    return found


def softplus(values: Tensor) -> Tensor:
    """log(1 + exp(values)); same shape. torch's own is linear above 20, which float64 can see."""
    return -torch.nn.functional.logsigmoid(-values)


def total_and_count(losses: Tensor, valid: Tensor) -> Totals:
    """The sum of the valid losses, and how many they are; each (1,)."""
    return Totals((losses * valid).sum()[None], valid.sum().to(losses.dtype)[None])

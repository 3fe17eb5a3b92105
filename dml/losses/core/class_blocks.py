"""The logits of a batch to all classes, in blocks of classes: of the (B, C) matrix two vectors are kept.

    target_logit[i] = logits[i, labels[i]]
    others_lse[i] = log sum over c != labels[i] of exp(logits[i, c])

Few logits are kept for backward, many are computed again: 110 ms instead of 148 for 11,318 classes.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dml.losses.core.blocks import block_values
from dml.similarity import at_least_float32, without_autocast

Logits = Callable[..., Tensor]
"""From anchors (B, D) and the rows of c classes, one or several tensors (c, ...), to fresh logits (B, c)."""

# Logits and rows together: kept in one piece up to 16 MiB of float32; beyond, computed again in pieces of 4,
# which stay in the cache. One thread, D = 128, forward, backward: B = 1024, C = 11,318: kept 148 ms, pieces
# of 1 MiB 146 ms, 2 MiB 122 ms, 4 MiB 110 ms, 8 MiB 111 ms. B = 4096, C = 1024: kept 36 ms, 4 MiB 43 ms.
_KEPT_VALUES = 1 << 22
_BLOCK_VALUES = 1 << 20


def target_and_others_lse(
    logits: Logits,
    anchors: Tensor,
    index: Tensor,
    rows: tuple[Tensor, ...],
    *,
    chosen: Tensor | None = None,
    per: Literal["anchor", "class"] = "anchor",
    values_per_logit: int = 1,
) -> tuple[Tensor, Tensor]:
    """Each anchor's logit to its own class, and the log-sum-exp of its logits to the others.

    Args:
        logits: of anchors and some classes' rows; what it returns is overwritten.
        anchors: (B, D) float.
        index: (B,) int64, the row of the anchor's class, counted among the chosen ones; -1: it has none here.
        rows: tensors (C, ...) with the classes in the first dimension.
        chosen: (N,) int64 the only rows to look at, each once; None: all.
        per: "anchor" sums over the classes of each anchor, "class" over the anchors of each class.
        values_per_logit: how many values `logits` computes for each, so that blocks are cut accordingly.

    Returns:
        (B,) target logits, 0 where the class has no row here; (B,) or (C,) others' log-sum-exps, -inf where
        there are no others.
    """
    axis = 1 if per == "anchor" else 0
    anchors = at_least_float32(anchors)
    both: tuple[Tensor, Tensor] = _TargetAndOthersLSE.apply(
        logits, index, chosen, axis, values_per_logit, anchors, *rows
    )
    return both


class _TargetAndOthersLSE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Logits,
        index: Tensor,
        chosen: Tensor | None,
        axis: int,
        values_per_logit: int,
        anchors: Tensor,
        *rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.logits, ctx.axis, ctx.kept = logits, axis, None
        num_classes = len(rows[0]) if chosen is None else len(chosen)
        values_of_rows = sum(row[:1].numel() for row in rows)
        ctx.blocks = _cut(num_classes, len(anchors) * values_per_logit + values_of_rows, anchors.device)
        keep = len(ctx.blocks) == 1 and any(ctx.needs_input_grad)
        target = anchors.new_zeros(len(anchors), 1)
        parts = []
        for block in ctx.blocks:
            inputs, values = _compute_logits(block, logits, chosen, (anchors, *rows), with_graph=keep)
            others = values.detach()
            if others.shape[1]:
                is_here, column = _target_column(index, block)
                at_column = others.gather(1, column)
                target = torch.where(is_here, at_column, target)
                others.scatter_(1, column, torch.where(is_here, -torch.inf, at_column))
            parts.append(others.logsumexp(axis))
            if keep:
                ctx.kept = inputs, values
        ctx.save_for_backward(index, chosen, others_lse := _joined(parts, axis), anchors, *rows)
        return target[:, 0], others_lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_target: Tensor, grad_others_lse: Tensor) -> tuple[Any, ...]:
        index, chosen, others_lse, *sources = ctx.saved_tensors
        wanted = [number for number, needed in enumerate(ctx.needs_input_grad[5:]) if needed]
        gradients: list[Tensor | None] = [None] * len(sources)
        for block in ctx.blocks:
            if ctx.kept is None:
                inputs, values = _compute_logits(block, ctx.logits, chosen, sources, with_graph=True)
            else:
                (inputs, values), ctx.kept = ctx.kept, None
            lse, weight = (
                part.unsqueeze(1) if ctx.axis == 1 else part[block].unsqueeze(0)
                for part in (others_lse, grad_others_lse)
            )
            grad_logits = _overwrite_by_gradient(values.detach(), lse, weight)
            if grad_logits.shape[1]:
                is_here, column = _target_column(index, block)
                at_column = torch.where(is_here, grad_target[:, None], grad_logits.gather(1, column))
                grad_logits.scatter_(1, column, at_column)
            with without_autocast(grad_logits.device):
                grads = torch.autograd.grad(values, [inputs[number] for number in wanted], grad_logits)
            del inputs, values, grad_logits
            for number, grad in zip(wanted, grads, strict=True):
                into = gradients[number]
                if number == 0:
                    gradients[0] = grad if into is None else into.add_(grad)
                elif len(ctx.blocks) == 1 and chosen is None:
                    gradients[number] = grad
                else:
                    into = _empty_gradient(sources[number], chosen) if into is None else into
                    into[block if chosen is None else chosen[block]] = grad
                    gradients[number] = into
        return (None, None, None, None, None, *gradients)


def _overwrite_by_gradient(logits: Tensor, lse: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a log-sum-exp at its logits, the softmax times the weight, in the logits' memory."""
    return logits.sub_(torch.where(lse.isfinite(), lse, 0.0)).exp_().mul_(weight)


def _cut(num_classes: int, values_per_class: int, device: torch.device) -> list[slice]:
    """Blocks of classes: one, if its values can be kept."""
    kept, at_a_time = (block_values(device, most) for most in (_KEPT_VALUES, _BLOCK_VALUES))
    whole = num_classes * values_per_class <= kept
    step = max(num_classes if whole else at_a_time // values_per_class, 1)
    return [slice(start, min(start + step, num_classes)) for start in range(0, max(num_classes, 1), step)]


def _compute_logits(
    block: slice, logits: Logits, chosen: Tensor | None, sources: Sequence[Tensor], *, with_graph: bool
) -> tuple[list[Tensor], Tensor]:
    """The block's inputs, leaves of a graph of their own, and its logits."""
    anchors, *rows = sources
    at = block if chosen is None else chosen[block]
    with torch.set_grad_enabled(with_graph), without_autocast(anchors.device):
        inputs = [part.detach().requires_grad_(with_graph) for part in (anchors, *(row[at] for row in rows))]
        return inputs, logits(*inputs)


def _target_column(index: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """(B, 1) whether an anchor's class is in the block, and in which of its columns; any, where it is not."""
    # For all anchors: to list those that have one would wait for a GPU.
    column = index[:, None] - block.start
    num_columns = block.stop - block.start
    return (column >= 0) & (column < num_columns), column.clamp(0, num_columns - 1)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.stack(parts).logsumexp(0) if axis == 1 else torch.cat(parts)


def _empty_gradient(source: Tensor, chosen: Tensor | None) -> Tensor:
    return torch.empty_like(source) if chosen is None else torch.zeros_like(source)

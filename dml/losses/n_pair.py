"""N-pair loss: an anchor's one positive against one image of every other class."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dml.arguments import NonNegativeFloat, PositiveFloat
from dml.losses.core.base import EmbeddingLoss
from dml.losses.core.blocks import block_rows
from dml.losses.core.references import References
from dml.similarity import at_least_float32, product

# 16 MiB of float32: N-pair keeps its logits for backward up to here.
_BLOCK_LOGITS, _LEAST_ROWS = 1 << 22, 32


class NPair(EmbeddingLoss):
    """An anchor's one positive against one image of every other class; by default of any length.

        mean over a of log(1 + sum over n of e^(scale (x_a . x_n - x_a . x_p)))  +  l2 mean of |x|^2

    A class's first image is the anchor of its second, its third of its fourth, and so on: with K = 2 the
    paper's batch. Negatives are the second images, and all even ones, of other classes.

    Only the similarities of firsts to seconds are computed: 0.5 times X @ X.T at B = 4096.

    Args:
        scale: multiplies inner products. 1 leaves unit vectors an almost flat loss; they want 16 to 32.
        l2: weight of the mean squared length; the authors' code has 0.02 / 4.
        normalize: see `EmbeddingLoss`; the paper does not.

    Raises:
        ValueError: references that do not contain the anchors, e.g. those of a memory bank.

    Source: Sohn 2016, "Improved deep metric learning with multi-class N-pair loss objective", NIPS, eq. 11.

    Example:
        >>> import torch
        >>> embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> round(NPair(l2=0)(embeddings, labels).item(), 4)
        0.6931
    """

    within_batch = True
    unit_length_defaults: ClassVar = {"scale": 16.0, "l2": 0.0}
    """Settings for embeddings of length 1: with the paper's the loss is almost flat, its penalty constant."""

    def __init__(
        self, scale: PositiveFloat = 1.0, *, l2: NonNegativeFloat = 0.005, normalize: bool = False
    ) -> None:
        super().__init__(normalize=normalize)
        self.scale, self.l2 = scale, l2

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        references = references.with_anchors("N-pair")
        firsts, seconds = _firsts_and_seconds(references.labels)
        local = firsts - references.first_row
        index = ((local >= 0) & (local < len(labels))).nonzero()[:, 0]
        anchors = self.scale * at_least_float32(embeddings).index_select(0, local[index])
        others = at_least_float32(references.embeddings).index_select(0, seconds)
        classes = references.labels[seconds]

        def block_loss(rows: slice) -> Tensor:
            target = index[rows, None]
            # Among images of its own class an anchor is compared with its positive alone.
            is_masked = (classes[target] == classes).scatter(1, target, False)
            logits = product(anchors[rows], others.T).masked_fill(is_masked, -torch.inf)
            return nn.functional.cross_entropy(logits, index[rows], reduction="sum")

        size = block_rows(embeddings.device, len(seconds), on_cpu=_BLOCK_LOGITS, at_least=_LEAST_ROWS)
        # A rank without anchors has a block of none: the others wait for it in the gather's backward.
        blocks = [slice(start, start + size) for start in range(0, max(len(index), 1), size)]
        if len(blocks) == 1:
            total = block_loss(blocks[0])
        else:  # of several, each is computed again in backward
            parts = [checkpoint(block_loss, rows, use_reentrant=False) for rows in blocks]
            total = sum(parts, anchors.new_zeros(()))
        penalty = self.l2 * at_least_float32(embeddings).square().sum(1).mean()
        return references.average(total, total.new_tensor(len(index))) + penalty


def _firsts_and_seconds(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the firsts and of the seconds, (M,) each: a class's first and second, third and fourth, ..."""
    sorted_labels, order = labels.sort(stable=True)
    rank = torch.arange(len(labels), device=labels.device)
    is_even = (rank - torch.searchsorted(sorted_labels, sorted_labels)) % 2 == 0
    has_next = (is_even[:-1] & (sorted_labels[1:] == sorted_labels[:-1])).nonzero()[:, 0]
    return order[has_next], order[has_next + 1]

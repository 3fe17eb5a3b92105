"""N-pair loss: one positive per anchor against one image of every other class."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dml.arguments import NonNegativeFloat, PositiveFloat
from dml.losses.core.base import EmbeddingLoss
from dml.losses.core.blocks import block_rows
from dml.losses.core.references import References
from dml.similarity import at_least_float32, product

# 16 MiB of float32: smaller matrices of logits are stored for backward, larger ones are recomputed.
_BLOCK_LOGITS, _LEAST_ROWS = 1 << 22, 32


class NPair(EmbeddingLoss):
    """One positive per anchor against one image of every other class; by default without normalization.

        mean over a of log(1 + sum over n of e^(scale (x_a . x_n - x_a . x_p)))  +  l2 mean of |x|^2

    The first image of a class is the anchor and the second its positive, then the third and the fourth, and
    so on; with K = 2 this is the batch of the paper. Negatives are the second, fourth, ... images of other
    classes.

    Only similarities between anchors and these images are computed: 0.5 times the duration of X @ X.T at
    B = 4096 (`python -m benchmarks.losses`).

    Args:
        scale: multiplies inner products. With unit vectors and a scale of 1 the loss is almost constant; use
            16 to 32.
        l2: weight of the mean squared length; the authors' code uses 0.02 / 4.
        normalize: see `EmbeddingLoss`; the paper does not normalize.

    Raises:
        ValueError: the references do not contain the anchors, e.g. those of a memory bank.

    Source: Sohn 2016, "Improved deep metric learning with multi-class N-pair loss objective", NIPS, eq. 11.

    Example:
        >>> import torch
        >>> embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> round(NPair(l2=0)(embeddings, labels).item(), 4)
        0.6931
    """

    within_batch = True
    unit_length_defaults: ClassVar = {"scale": 16.0, "l2": 0.0}
    """Settings for unit vectors; with those of the paper the loss is almost constant."""

    def __init__(
        self, scale: PositiveFloat = 1.0, *, l2: NonNegativeFloat = 0.005, normalize: bool = False
    ) -> None:
        super().__init__(normalize=normalize)
        self.scale, self.l2 = scale, l2

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        references = references.with_anchors("N-pair")
        anchor_rows, positive_rows = _anchors_and_positives(references.labels)
        local = anchor_rows - references.first_row
        index = ((local >= 0) & (local < len(labels))).nonzero()[:, 0]
        anchors = self.scale * at_least_float32(embeddings).index_select(0, local[index])
        candidates = at_least_float32(references.embeddings).index_select(0, positive_rows)
        classes = references.labels[positive_rows]

        def block_loss(rows: slice) -> Tensor:
            target = index[rows, None]
            # Among the images of its class, an anchor is compared only with its positive.
            is_masked = (classes[target] == classes).scatter(1, target, False)
            logits = product(anchors[rows], candidates.T).masked_fill(is_masked, -torch.inf)
            return nn.functional.cross_entropy(logits, index[rows], reduction="sum")

        size = block_rows(embeddings.device, len(positive_rows), on_cpu=_BLOCK_LOGITS, at_least=_LEAST_ROWS)
        # A rank without anchors computes one empty block: the gather's backward needs all ranks.
        blocks = [slice(start, start + size) for start in range(0, max(len(index), 1), size)]
        if len(blocks) == 1:
            total = block_loss(blocks[0])
        else:  # several blocks are recomputed in backward
            block_losses = [checkpoint(block_loss, rows, use_reentrant=False) for rows in blocks]
            total = sum(block_losses, anchors.new_zeros(()))
        penalty = self.l2 * at_least_float32(embeddings).square().sum(1).mean()
        return references.average(total, total.new_full((), len(index))) + penalty


def _anchors_and_positives(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) rows of anchors, (M,) rows of positives: first and second of a class, third and fourth, ..."""
    sorted_labels, order = labels.sort(stable=True)
    rank = torch.arange(len(labels), device=labels.device)
    is_even = (rank - torch.searchsorted(sorted_labels, sorted_labels)) % 2 == 0
    has_next = (is_even[:-1] & (sorted_labels[1:] == sorted_labels[:-1])).nonzero()[:, 0]
    return order[has_next], order[has_next + 1]

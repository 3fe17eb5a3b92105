"""Margin loss: distances of positives below a learnt boundary, distances of negatives above it."""

from typing import Annotated, Unpack

import torch
from torch import Tensor, nn

from dml.arguments import NonNegativeFloat, PositiveInt, Range
from dml.losses.core.miners import MinedLoss, MinedOptions, Miner, Mining
from dml.losses.core.pair_loss import Pairs, Totals
from dml.losses.core.references import check_class_ids
from dml.similarity import distances


class Margin(MinedLoss):
    """Hinges on positives farther than beta - alpha and negatives closer than beta + alpha.

        sum of max(0, alpha + d(a, p) - beta) + max(0, alpha + beta - d(a, n)) + nu beta
        over the kept pairs (a, p) and their (a, n), divided by the number of active hinges

    0 with zero gradient if no hinge is active.

    Negatives are sampled inside each block of anchors: 1.8 times the duration of X @ X.T at B = 4096, 0.2 of
    its memory (`python -m benchmarks.losses`).

    Args:
        num_classes: C, one boundary per class; None: one boundary for all classes.
        alpha: half the gap between positives and negatives, (0, 2].
        beta: initial boundary in Euclidean distance, (0, 2]; Wu et al. use 1.2.
        nu: weight of the regularizer that keeps the boundaries small.
        learn_beta: whether the boundary is a parameter. It needs its own learning rate, e.g. 5e-4 if Adam
            uses 1e-5 for the encoder.
        mining: selects the pairs: a name of `MINING`, or a miner.
        options: seed, normalize; see `MinedLoss`.

    Source: Wu et al. 2017, arXiv:1706.07567, eq. 4-6. The two hinges of a triplet count as two, as in the
    authors' code. Implementations that add bools count them as one; their loss is up to twice as large.

    Example:
        >>> import torch
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> round(Margin()(embeddings, labels).item(), 4)
        0.7675
    """

    def __init__(
        self,
        num_classes: PositiveInt | None = None,
        *,
        alpha: Annotated[float, Range(gt=0, le=2)] = 0.2,
        beta: Annotated[float, Range(gt=0, le=2)] = 1.2,
        nu: NonNegativeFloat = 0.0,
        learn_beta: bool = True,
        mining: Mining | Miner = "distance_weighted",
        **options: Unpack[MinedOptions],
    ) -> None:
        super().__init__(mining, **options)
        self.alpha, self.nu = alpha, nu
        initial = torch.full(() if num_classes is None else (num_classes,), float(beta))
        self.beta = nn.Parameter(initial, requires_grad=learn_beta)

    def check_labels(self, labels: Tensor) -> Tensor:
        if not self.beta.ndim:
            return super().check_labels(labels)
        return check_class_ids(labels, len(self.beta), "boundary")

    def per_anchor(self, labels: Tensor) -> tuple[Tensor, ...]:
        return (self.beta[labels] if self.beta.ndim else self.beta.expand(len(labels)),)

    def terms(self, pairs: Pairs) -> Totals:
        tuples = self.miner(pairs)
        beta = pairs.per_anchor[0][:, None]
        attracted = (self.alpha + distances(pairs.positives) - beta).clamp_min(0) * tuples.is_kept
        repelled = (self.alpha + beta - distances(tuples.negatives)).clamp_min(0)
        if tuples.paired:
            repelled = repelled * tuples.is_kept
        total = attracted.sum() + repelled.sum()
        if self.nu:
            total = total + self.nu * (beta * tuples.is_kept).sum()
        num_active = torch.count_nonzero(attracted) + torch.count_nonzero(repelled)
        return Totals(total[None], num_active.to(total.dtype)[None])

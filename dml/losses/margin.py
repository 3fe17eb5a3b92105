"""The margin loss: distances of positives below, of negatives above a boundary that is learnt."""

from typing import Annotated, Unpack

import torch
from torch import Tensor, nn

from dml.losses.arguments import NonNegativeFloat, PositiveInt, Range, Seed
from dml.losses.base import LossOptions
from dml.losses.blocks import Pairs, Totals, average_over_anchors
from dml.losses.chance import Chance
from dml.losses.mining import MinedLoss, Miner, Mining, miner_of
from dml.losses.references import References, check_class_ids
from dml.similarity import distances


def margin_loss(
    embeddings: Tensor,
    labels: Tensor,
    beta: Tensor,
    references: References | None = None,
    *,
    alpha: float = 0.2,
    nu: float = 0.0,
    mining: Mining | Miner = "distance-weighted",
    chance: Chance | None = None,
    block_rows: int | None = None,
) -> Tensor:
    """Hinges on positives farther than beta - alpha and negatives closer than beta + alpha.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids.
        beta: () or (B,) float, the boundary of each anchor, in Euclidean distance.
        references: the global batch; None: the batch itself.
        alpha: half the gap between positives and negatives.
        nu: weight of the sum of the kept positives' boundaries, which keeps beta from growing.
        mining: which pairs count: a name of `dml.losses.mining.MINING`, or a miner.
        chance: of the miners that draw; None: always the same draws.
        block_rows: anchors at a time; None chooses.

    Returns:
        Scalar, the sum over the number of hinges that are not at rest. 0 with zero gradient when all are.

    Source: Wu et al. 2017, arXiv:1706.07567, eq. 4-6. A positive and a negative of one triplet count as two,
    as in the authors' code; codes that add bools count them as one, and their loss is up to twice this.
    """
    references = References.of(embeddings, labels, references)
    miner = miner_of(mining, dim=embeddings.shape[1])
    chance = chance or Chance.of_first_call(labels)

    def terms(pairs: Pairs) -> Totals:
        tuples = miner(pairs, chance)
        boundary = pairs.own[0][:, None]
        attracted = (alpha + distances(pairs.positives) - boundary).clamp_min(0) * tuples.is_kept
        repelled = (alpha + boundary - distances(tuples.negatives)).clamp_min(0)
        if tuples.paired:
            repelled = repelled * tuples.is_kept
        total = attracted.sum() + repelled.sum()
        if nu:
            total = total + nu * (boundary * tuples.is_kept).sum()
        num_active = torch.count_nonzero(attracted) + torch.count_nonzero(repelled)
        return Totals(total[None], num_active.to(total.dtype)[None])

    own = (beta.expand(len(labels)),)
    return average_over_anchors(terms, embeddings, labels, references, own=own, block_rows=block_rows)


class Margin(MinedLoss):
    """`margin_loss` with its boundary.

    Args:
        num_classes: C, a boundary for each class; None: one for all.
        alpha: half the gap between positives and negatives.
        beta: the boundary to start from; Wu et al. have 1.2.
        nu: weight of the boundaries.
        learn_beta: whether the boundary is a parameter; it wants a rate of its own, 5e-4 with Adam at 1e-5.
        mining: which pairs count.
        seed: of what is drawn.
        options: normalize; see `EmbeddingLoss`.
    """

    def __init__(
        self,
        num_classes: PositiveInt | None = None,
        *,
        alpha: Annotated[float, Range(gt=0, le=2)] = 0.2,
        beta: Annotated[float, Range(gt=0, le=2)] = 1.2,
        nu: NonNegativeFloat = 0.0,
        learn_beta: bool = True,
        mining: Mining | Miner = "distance-weighted",
        seed: Seed = 0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(mining, seed, **options)
        self.alpha, self.nu = alpha, nu
        start = torch.full(() if num_classes is None else (num_classes,), beta)
        self.beta = nn.Parameter(start, requires_grad=learn_beta)

    def check_labels(self, labels: Tensor) -> Tensor:
        if not self.beta.ndim:
            return super().check_labels(labels)
        return check_class_ids(labels, len(self.beta), "boundary")

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return margin_loss(
            embeddings,
            labels,
            self.beta[labels] if self.beta.ndim else self.beta,
            references,
            alpha=self.alpha,
            nu=self.nu,
            mining=self.mining,
            chance=self.next_chance(),
        )

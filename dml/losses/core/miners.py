"""Miners: select the pairs and triplets of a block that a loss uses, without listing them.

A miner keeps some positives and negatives of every anchor, or samples one negative for each kept positive.
Sampling depends on the anchor's row in the global batch, so the tuples are the same for any number of
workers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn

from dml.arguments import Range, Seed, Unless, check_arguments
from dml.losses.core.pair_loss import MASKED, PairLoss, Pairs, average_over_anchors
from dml.losses.core.references import References
from dml.losses.core.rng import CounterRNG
from dml.similarity import distances

Mining = Literal[
    "all", "random", "batch_hard", "semi_hard", "soft_hard", "distance_weighted", "n_pair", "multi_similarity"
]
MINING: tuple[Mining, ...] = get_args(Mining)
"""The names of all miners."""


@dataclass(frozen=True)
class Tuples:
    """The positives and negatives of a block that a miner keeps."""

    negatives: Tensor
    """(A, R) similarities, `MASKED` where the miner drops the negative; with `paired` (A, P)."""
    is_kept: Tensor
    """(A, P) bool, True for the kept positives."""
    paired: bool
    """Whether `negatives` holds one negative for each positive.

    If not, all kept ones are combined with all.
    """


Miner = Callable[[Pairs], Tuples]
"""A miner, from this module or your own: maps a block to its tuples, differentiable in the similarities."""


def all_miner(pairs: Pairs) -> Tuples:
    """Every positive with every negative."""
    return Tuples(pairs.negatives, pairs.is_positive, paired=False)


def random_miner(pairs: Pairs) -> Tuples:
    """Each positive with one negative, sampled uniformly."""
    uniform = pairs.rng.uniform(pairs.anchor_index, pairs.positives.shape[1])
    return _paired(pairs, pairs.is_positive, _draw_uniform(pairs, uniform))


def batch_hard_miner(pairs: Pairs) -> Tuples:
    """The farthest positive and closest negative of each anchor.

    Hermans et al. 2017, arXiv:1703.07737, eq. 5.
    """
    farthest = pairs.positives.detach().masked_fill(~pairs.is_positive, torch.inf).argmin(1, keepdim=True)
    closest = pairs.negatives.detach().argmax(1, keepdim=True)
    return _paired(pairs, _only(farthest, pairs), closest.expand_as(pairs.positive_index))


@check_arguments
@dataclass(frozen=True)
class SemiHardMiner:
    """Each positive with one negative that is farther, but by less than the margin. Without one, no tuple.

    Schroff et al. 2015, arXiv:1503.03832, sec. 3.2; here the negative is sampled uniformly from these.

    Args:
        margin: in units of distance; at most the largest possible distance.
        squared: whether the margin applies to squared Euclidean distances.
    """

    margin: (
        Annotated[float, Range(gt=0, le=2)] | Annotated[float, Range(gt=0, le=4), Unless("squared", False)]
    ) = 0.2
    squared: bool = True

    def __call__(self, pairs: Pairs) -> Tuples:
        positives, negatives = pairs.positives.detach(), pairs.negatives.detach()
        bounds = beyond_margin(positives, self.margin, squared=self.squared)
        columns, has_any = [], []
        for slot in range(positives.shape[1]):
            is_between = _is_positive(negatives - bounds[:, slot, None])
            is_between *= _is_positive(positives[:, slot, None] - negatives)
            uniform = pairs.rng.uniform(pairs.anchor_index, 1, stream=slot)
            column, has_one = _draw_weighted(is_between, uniform)
            columns.append(column)
            has_any.append(has_one)
        is_kept = pairs.is_positive & torch.stack(has_any, 1)
        return _paired(pairs, is_kept, torch.cat(columns, 1))


def soft_hard_miner(pairs: Pairs) -> Tuples:
    """One triplet per anchor, sampled uniformly from the hard ones instead of taking the hardest.

    The negative is sampled from those closer than the farthest positive, the positive from those farther than
    the closest negative; if there are none, from all. Roth et al. 2020, arXiv:2002.08473, app. on mining.
    """
    positives = pairs.positives.detach()
    farthest = positives.masked_fill(~pairs.is_positive, torch.inf).amin(1, keepdim=True)
    closest = pairs.negatives.detach().amax(1, keepdim=True)
    hard = pairs.is_positive & (positives < closest)
    hard = torch.where(hard.any(1, keepdim=True), hard, pairs.is_positive)
    uniform = pairs.rng.uniform(pairs.anchor_index, 2)
    positive, _ = _draw_weighted(hard.to(positives.dtype), uniform[:, :1])
    negative = _draw(_is_positive(pairs.negatives.detach() - farthest), pairs, uniform[:, 1:])
    return _paired(pairs, _only(positive, pairs), negative.expand_as(pairs.positive_index))


@check_arguments
@dataclass(frozen=True)
class DistanceWeightedMiner:
    """Each positive with one negative, sampled so that all distances are equally likely.

        weight of a negative at distance d = 1 / q(d),   q(d) = d^(D-2) (1 - d^2/4)^((D-3)/2)

    q is the density of distances on the sphere. If all negatives of an anchor are beyond the cutoff, sampling
    is uniform. Weights are divided by the largest weight of the same anchor: divided by the largest of the
    batch, the weights of most anchors underflow in float32 for D >= 512.

    Args:
        cutoff: smaller distances are replaced by this one.
        nonzero_loss_cutoff: negatives beyond this distance are not sampled; 2: no limit.

    Source: Wu et al. 2017, arXiv:1706.07567, sec. 3.3 (0.5 and 1.4 in the authors' code).
    """

    cutoff: Annotated[float, Range(gt=0, le=2)] = 0.5
    nonzero_loss_cutoff: Annotated[float, Range(gt="cutoff", le=2)] = 1.4

    def __call__(self, pairs: Pairs) -> Tuples:
        least, most = 1 - self.nonzero_loss_cutoff**2 / 2, 1 - self.cutoff**2 / 2
        similarities = pairs.negatives.detach()
        log_weights = _log_weights(similarities.clamp(max(least, -1 + 1e-6), most), pairs.dim)
        weights = log_weights.sub_(log_weights.amax(1, keepdim=True)).exp_()
        # Weight 0 at or beyond the cutoff, and where the matrix is masked.
        weights *= _is_positive(similarities - least)
        uniform = pairs.rng.uniform(pairs.anchor_index, pairs.positives.shape[1])
        return _paired(pairs, pairs.is_positive, _draw(weights, pairs, uniform))


def _log_weights(similarities: Tensor, dim: int) -> Tensor:
    # d^2 = 2 - 2s and 1 - d^2/4 = (1 + s) / 2; constant factors are dropped.
    log_weights = (1 - similarities).log_().mul_(-0.5 * (dim - 2))
    return log_weights.add_((1 + similarities).log_(), alpha=-0.5 * (dim - 3))


def n_pair_miner(pairs: Pairs) -> Tuples:
    """N-pair tuples: the first image of a class with its second, against the second images of other classes.

    With K images per class also the third with the fourth, and so on; the negatives are then all images at
    even positions of other classes. Sohn 2016, NIPS, sec. 3.2.
    """
    occurrence = pairs.occurrence()
    anchor_occurrence = occurrence[pairs.anchor_index, None]
    is_next = occurrence[pairs.positive_index] == anchor_occurrence + 1
    is_kept = pairs.is_positive & (anchor_occurrence % 2 == 0) & is_next
    # 0 where allowed, else -inf.
    allowed = (occurrence % 2).to(pairs.negatives.dtype).log_()
    has_pair = is_kept.any(1, keepdim=True).to(pairs.negatives.dtype).log_()
    return Tuples(pairs.negatives + allowed + has_pair, is_kept, paired=False)


@check_arguments
@dataclass(frozen=True)
class MultiSimilarityMiner:
    """Positives farther than the closest negative, negatives closer than the farthest positive, with slack.

    Wang et al. 2019, arXiv:1904.06627, eq. 11 and 12.

    Args:
        epsilon: the slack, in units of cosine similarity.
    """

    epsilon: Annotated[float, Range(ge=0, le=2)] = 0.1

    def __call__(self, pairs: Pairs) -> Tuples:
        with torch.no_grad():
            closest = pairs.negatives.amax(1, keepdim=True)
            least = pairs.positives.masked_fill(~pairs.is_positive, torch.inf).amin(1, keepdim=True)
            least = (least - self.epsilon).clamp(-3, 3)  # outside the range of similarities, but finite
        # `threshold` instead of a comparison avoids a mask of the whole matrix.
        negatives = nn.functional.threshold(pairs.negatives - least, 0.0, MASKED) + least
        return Tuples(negatives, pairs.is_positive & (pairs.positives < closest + self.epsilon), paired=False)


def make_miner(mining: Mining | Miner, *, margin: float | None = 0.2, squared: bool = True) -> Miner:
    """The miner with this name and the settings of its paper; a miner object is returned unchanged.

    Args:
        mining: a name of `MINING`, or a miner.
        margin: of semi-hard negatives; required for them.
        squared: whether the margin applies to squared distances.

    Raises:
        ValueError: semi-hard mining without a margin.
    """
    if callable(mining):
        return mining
    if mining == "semi_hard":
        return SemiHardMiner(margin, squared)  # type: ignore[arg-type]  # which refuses None
    miners: dict[str, Miner] = {
        "all": all_miner,
        "random": random_miner,
        "batch_hard": batch_hard_miner,
        "soft_hard": soft_hard_miner,
        "distance_weighted": DistanceWeightedMiner(),
        "n_pair": n_pair_miner,
        "multi_similarity": MultiSimilarityMiner(),
    }
    return miners[mining]


class MinedOptions(TypedDict, total=False):
    """Arguments of every loss with a miner; see `MinedLoss`."""

    normalize: bool
    seed: Seed


class MinedLoss(PairLoss):
    """A loss over the pairs or triplets that a miner keeps.

    It counts its calls as a counter for random sampling; the count is in `state_dict`.

    Args:
        mining: a name of `MINING`, or a miner.
        margin: of semi-hard negatives.
        squared: whether the margin applies to squared distances.
        seed: of the random sampling.
        normalize: see `EmbeddingLoss`.
    """

    num_calls: Tensor

    def __init__(
        self,
        mining: Mining | Miner,
        *,
        margin: Annotated[float, Range(gt=0, le=4)] | Annotated[None, Unless("mining", "semi_hard")] = 0.2,
        squared: bool = True,
        seed: Seed = 0,
        normalize: bool = True,
    ) -> None:
        super().__init__(normalize=normalize)
        self.mining, self.seed = mining, seed
        self.miner = make_miner(mining, margin=margin, squared=squared)
        self.within_batch = mining == "n_pair"
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))

    def compute_loss(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return average_over_anchors(
            self.terms,
            embeddings,
            labels,
            references,
            per_anchor=self.per_anchor(labels),
            rng=self.next_rng(),
        )

    def per_anchor(self, labels: Tensor) -> tuple[Tensor, ...]:
        """Differentiable values for every anchor, passed to `terms` as `Pairs.per_anchor`; default: none."""
        return ()

    def next_rng(self) -> CounterRNG:
        """The random numbers of this call; in training mode the next call gets different ones."""
        rng = CounterRNG(self.seed, self.num_calls.clone())
        if self.training:
            self.num_calls += 1
        return rng


def beyond_margin(similarities: Tensor, margin: float, *, squared: bool) -> Tensor:
    """The similarity at which a negative is farther by exactly the margin than a positive."""
    if squared:
        return similarities - 0.5 * margin
    return 1 - 0.5 * (distances(similarities) + margin).square()


def _paired(pairs: Pairs, is_kept: Tensor, columns: Tensor) -> Tuples:
    """Each kept positive with the negative in its column; nothing for anchors without negatives."""
    is_kept = is_kept & (pairs.num_negatives > 0)[:, None]
    return Tuples(pairs.negatives.gather(1, columns), is_kept, paired=True)


def _only(slot: Tensor, pairs: Pairs) -> Tensor:
    """(A, P) bool: True only for the positives in the slots (A, 1)."""
    return torch.zeros_like(pairs.is_positive).scatter_(1, slot, True) & pairs.is_positive


def _is_positive(values: Tensor) -> Tensor:
    """1 where above 0, else 0, computed in place; a comparison takes three times as long."""
    return values.relu_().sign_()


def _draw(weights: Tensor, pairs: Pairs, uniform: Tensor) -> Tensor:
    """Columns (A, S) sampled with weights (A, R) and uniform numbers (A, S); uniform if all weights are 0."""
    columns, has_any = _draw_weighted(weights, uniform)
    return torch.where(has_any[:, None], columns, _draw_uniform(pairs, uniform))


def _draw_uniform(pairs: Pairs, uniform: Tensor) -> Tensor:
    """Columns (A, S) of negatives, sampled uniformly; arbitrary columns if there are no negatives.

    The column of the n-th negative is n plus the number of positives before it: O(S log P) instead of O(R).
    """
    num_columns, num_negatives = pairs.negatives.shape[1], pairs.num_negatives[:, None]
    nth = (uniform.to(pairs.positives.dtype) * num_negatives).long()
    nth = torch.minimum(nth, num_negatives - 1).clamp_min(0)
    slots = torch.arange(pairs.positive_index.shape[1], device=nth.device)
    is_same_class = slots < num_columns - num_negatives
    negatives_before = torch.where(is_same_class, pairs.positive_index - slots, num_columns)
    columns = nth + torch.searchsorted(negatives_before, nth, right=True)
    return columns.clamp_max(num_columns - 1)


def _draw_weighted(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (A, S) sampled with weights (A, R) >= 0 and uniform numbers (A, S); (A,) any weight above 0.

    A column of weight 0 is never sampled if the row has another.
    """
    sums = weights.cumsum(1)
    total = sums[:, -1:]
    # Below the total even after rounding, so that searchsorted does not return a column after the last
    # weight.
    target = torch.minimum(uniform.to(sums.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(sums, target, right=True).clamp_max(weights.shape[1] - 1), total[:, 0] > 0

"""Verification (same or different): ROC curves of pairs by similarity, for a list of pairs or for all pairs.

A pair is accepted where its similarity is at least the threshold. Genuine pairs share a class, impostor pairs
don't. Pairs that share a class, let alone an item, err together: among all pairs, intervals resample classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dml.metrics.arguments import (
    LENGTH_TOLERANCE,
    check_one_device,
    check_same_length,
    check_vector,
    checked_count,
    checked_share,
)
from dml.metrics.intervals import Interval, percentile_interval, wilson_interval
from dml.metrics.pair_counts import (
    BINS,
    Levels,
    PairCounts,
    Resamples,
    count_pairs,
    edges,
    equal_error_rates,
    levels_for,
    resampled,
)
from dml.metrics.ranking import Items
from dml.similarity import squared_distances

_RESAMPLES = 1000


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold for a false-accept rate, with its rates and 95 % intervals."""

    threshold: float
    """Similarity; infinity if even the most similar impostor pair exceeds the rate."""
    true_accept_rate: float
    true_accept_interval: Interval
    false_accept_rate: float
    """The rate at this threshold: at most the requested rate, not the nearest one."""
    false_accept_interval: Interval


@dataclass(frozen=True)
class RocCurve:
    """Counts of accepted pairs at each threshold; thresholds descend from infinity, which accepts none."""

    thresholds: Tensor
    """(T,) float64 similarities."""
    genuine: Tensor
    """(T,) int64: genuine pairs accepted; the last is all of them."""
    impostor: Tensor
    """(T,) int64: impostor pairs accepted; the last is all of them."""
    resamples: Resamples | None = None
    """Resamples for intervals; None: the classes of the pairs are unknown."""

    @property
    def true_accept_rates(self) -> Tensor:
        """(T,) float64, ascending from 0 to 1."""
        return self.genuine.double() / self.genuine[-1]

    @property
    def false_accept_rates(self) -> Tensor:
        """(T,) float64, ascending from 0 to 1."""
        return self.impostor.double() / self.impostor[-1]

    def area(self) -> float:
        """Area under the curve: probability that a genuine pair is more similar than an impostor pair."""
        return float(torch.trapezoid(self.true_accept_rates, self.false_accept_rates))

    def equal_error_rate(self) -> float:
        """The rate where false accepts equal false rejects, by linear interpolation."""
        return float(equal_error_rates(self.false_accept_rates[None], self.true_accept_rates[None]))

    def equal_error_interval(self) -> Interval:
        """95 % interval of the equal error rate, by percentile bootstrap over classes.

        Raises:
            ValueError: the classes of the pairs are not known, or none of the false-accept rates that the
                intervals were prepared for is as large as the equal error rate.
        """
        rate = self.equal_error_rate()
        if self.resamples is None:
            raise ValueError(
                "An interval of the equal error rate needs the classes of the pairs; got only pairs. Use "
                "roc_of_all_pairs."
            )
        if rate > self.resamples.largest_rate:
            raise ValueError(
                f"The interval of the equal error rate {rate:.4g} needs a false-accept rate that large; the "
                f"largest is {self.resamples.largest_rate}. Pass a larger one in false_accept_rates."
            )
        return percentile_interval(self.resamples.equal_error_rates())

    def at_false_accept_rate(self, rate: float) -> OperatingPoint:
        """The lowest threshold whose false-accept rate is at most `rate`, with 95 % intervals.

        Of all pairs the intervals are percentile bootstraps over classes: of the true-accept rate with the
        threshold that each resample would choose, of the false-accept rate at this threshold. Of given pairs
        they are Wilson's, for independent pairs: too narrow where pairs share items or classes.

        Raises:
            ValueError: a rate outside (0, 1), or above those that the intervals were prepared for.

        Source: Efron and Tibshirani 1993, ch. 8; on verification Bolle, Ratha, Pankanti 2004, "Error analysis
        of pattern recognition systems: the subsets bootstrap".
        """
        rate = checked_share("A false-accept rate", rate, usual=0.001)
        if self.resamples is not None and rate > self.resamples.largest_rate:
            raise ValueError(
                f"A false-accept rate must be at most {self.resamples.largest_rate}, for which the intervals "
                f"were prepared; got {rate}. Pass it in false_accept_rates when you count the pairs."
            )
        # Compared as counts of pairs, because rounding of a quotient could reject 10 of 1000 at 0.01.
        allowed = int((self.impostor.double() <= rate * int(self.impostor[-1]) * (1 + 1e-12)).sum()) - 1
        genuine, impostor = int(self.genuine[allowed]), int(self.impostor[allowed])
        num_genuine, num_impostor = int(self.genuine[-1]), int(self.impostor[-1])
        threshold = float(self.thresholds[allowed])
        if self.resamples is None:
            true_accepts = wilson_interval(genuine, num_genuine)
            false_accepts = wilson_interval(impostor, num_impostor)
        else:
            true_accepts = percentile_interval(self.resamples.true_accept_rates_at(rate))
            false_accepts = percentile_interval(self.resamples.false_accept_rates_at(threshold))
        return OperatingPoint(
            threshold=threshold,
            true_accept_rate=genuine / num_genuine,
            true_accept_interval=true_accepts,
            false_accept_rate=impostor / num_impostor,
            false_accept_interval=false_accepts,
        )


def roc_of_pairs(similarities: Tensor, same: Tensor) -> RocCurve:
    """The exact ROC curve of a list of pairs.

    Args:
        similarities: (P,) float, one per pair.
        same: (P,) bool: genuine pairs.

    Returns:
        One threshold per different similarity, and infinity.

    Raises:
        ValueError: what are not (P,) numbers and (P,) truth values of one length, or no genuine or no
            impostor pair.
    """
    _check_pairs(similarities, same)
    thresholds, position = torch.unique(similarities.double(), return_inverse=True)
    genuine, impostor = (torch.bincount(position[kind], minlength=len(thresholds)) for kind in (same, ~same))
    return _curve(thresholds, genuine, impostor)


def roc_of_all_pairs(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ids: Tensor | None = None,
    bins: int = BINS,
    false_accept_rates: Sequence[float] = (0.1,),
    resamples: int = _RESAMPLES,
) -> RocCurve:
    """The ROC curve of all N(N-1)/2 pairs of different items, counted in histograms of similarity.

    The counts at the bins' edges are exact: bins are powers of two, so no rounding moves a pair over an edge.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        ids: (N,) int64; pairs with the same id are the same item and excluded; None: all rows differ.
        bins: of similarity over [-1, 1], a power of two.
        false_accept_rates: `at_false_accept_rate` has intervals up to the largest of these.
        resamples: of the classes, for the intervals.

    Raises:
        ValueError: different lengths, rows not of length 1, bins no power of two, a rate outside (0, 1), no
            resample, or no genuine or no impostor pair.
    """
    items = Items(embeddings, labels, ids)
    levels = levels_for(items, false_accept_rates, bins=bins)
    return roc_of_counts(count_pairs(items, levels), levels, items, resamples=resamples)


def roc_of_counts(
    counts: PairCounts, levels: Levels, items: Items, *, resamples: int = _RESAMPLES
) -> RocCurve:
    """The ROC curve from the counts of `count_pairs`, with resamples of the classes.

    Args:
        counts: counts of all rows.
        levels: levels of the counts.
        items: items of the counts.
        resamples: of the classes.

    Raises:
        ValueError: no genuine or no impostor pair, or no resample.
    """
    thresholds = edges(levels.num_bins).to(counts.genuine.device)
    of_classes = resampled(counts, levels, items, resamples)
    return _curve(thresholds, counts.genuine, counts.impostor, of_classes)


def _check_pairs(similarities: Tensor, same: Tensor) -> None:
    check_vector("similarities", similarities, "float")
    check_vector("same", same, "bool")
    check_same_length(similarities=similarities, same=same)
    check_one_device(similarities=similarities, same=same)


def _curve(
    thresholds: Tensor, genuine: Tensor, impostor: Tensor, resamples: Resamples | None = None
) -> RocCurve:
    """The curve from ascending thresholds and the number of pairs at each."""
    if not genuine.sum() or not impostor.sum():
        raise ValueError(
            f"Verification needs genuine and impostor pairs; got {int(genuine.sum())} genuine and "
            f"{int(impostor.sum())} impostor pairs. Pass at least two classes, one of them with two items."
        )
    infinity, none = thresholds.new_full((1,), torch.inf), genuine.new_zeros(1)
    return RocCurve(
        torch.cat([infinity, thresholds.flip(0)]),
        torch.cat([none, genuine.flip(0).cumsum(0)]),
        torch.cat([none, impostor.flip(0).cumsum(0)]),
        resamples,
    )


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy of each fold with the threshold that is best on the other folds."""

    mean: float
    deviation: float
    """Standard deviation over folds with divisor num_folds, as in the tables of LFW."""
    folds: list[float]


def k_fold_accuracy(
    similarities: Tensor, same: Tensor, *, folds: Tensor | None = None, num_folds: int = 10
) -> FoldAccuracy:
    """Verification accuracy by the LFW protocol: 10 folds, thresholds 0, 0.01 .. 3.99 of squared distance.

    If several thresholds are best, the lowest is used.

    Args:
        similarities: (P,) float, cosine similarity of each pair.
        same: (P,) bool: genuine pairs.
        folds: (P,) int64, fold of each pair in the list of the benchmark; None: `num_folds` blocks of equal
            length in list order, as in LFW.
        num_folds: number of folds if `folds` is None.

    Raises:
        ValueError: what are not (P,) cosines, truth values and whole numbers of one length, or fewer than two
            folds or pairs.

    Source: Huang et al. 2007, Labeled Faces in the Wild, image-restricted.
    """
    _check_pairs(similarities, same)
    folds = _equal_folds(same, num_folds) if folds is None else folds
    beyond = similarities[similarities.abs() > 1 + 2 * LENGTH_TOLERANCE]
    if len(beyond):
        raise ValueError(
            f"similarities must be cosines, in [-1, 1]; got {float(beyond[0]):.4g}. Pass inner products of "
            "rows of length 1, not distances."
        )
    check_vector("folds", folds, "int64")
    check_same_length(similarities=similarities, same=same, folds=folds)
    check_one_device(similarities=similarities, folds=folds)
    thresholds = torch.arange(400, dtype=torch.float64, device=similarities.device) / 100
    distances = squared_distances(similarities.double())
    members = [folds == fold for fold in torch.unique(folds)]
    if len(members) < 2:
        raise ValueError(f"folds must have at least two different values; got {len(members)}.")
    right = torch.stack([_told_right(distances[fold], same[fold], thresholds) for fold in members])
    best = (right.sum(0) - right).argmax(1)
    accuracies = torch.tensor(
        [int(row[column]) / int(fold.sum()) for row, column, fold in zip(right, best, members, strict=True)],
        dtype=torch.float64,
    )
    return FoldAccuracy(float(accuracies.mean()), float(accuracies.std(correction=0)), accuracies.tolist())


def _equal_folds(same: Tensor, num_folds: int) -> Tensor:
    """(P,) int64: blocks of equal length in list order."""
    if checked_count("num_folds", num_folds, at_least=2) > len(same):
        raise ValueError(
            f"num_folds must be in [2, number of pairs]; got {num_folds} of {len(same)}. Lower it."
        )
    parts = torch.arange(len(same), device=same.device).tensor_split(num_folds)
    return torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])


def _told_right(distances: Tensor, same: Tensor, thresholds: Tensor) -> Tensor:
    """(T,) int64: number of correct pairs at each threshold; a pair with a smaller distance is accepted."""
    genuine = torch.searchsorted(distances[same].sort().values, thresholds)
    impostor = torch.searchsorted(distances[~same].sort().values, thresholds)
    return genuine + (~same).sum() - impostor

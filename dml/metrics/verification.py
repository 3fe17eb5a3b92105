"""Is it the same one, or not? Errors of accepting a pair by its similarity, on given pairs or on all of them.

A pair is accepted where its similarity is at least the threshold. Genuine pairs share a class, impostor pairs
don't. Pairs that share a class, let alone an item, err together: among all pairs, intervals resample classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dml.metrics.arguments import (
    check_equally_long,
    check_labelled,
    check_one_device,
    check_unit_rows,
    check_vector,
    checked_count,
    checked_share,
    checked_shares,
)
from dml.metrics.intervals import Interval, class_weights, percentile_interval, wilson_interval
from dml.similarity import cosine_similarities, squared_distances

# A tile is what a core keeps near; of few rows and all columns, the product would read everything for each.
_TILE_ROWS, _TILE_COLUMNS = 512, 2048
_BINS = 1 << 16  # of similarity, each 2 / 65536 = 0.00003 wide
_LEVELS = 128  # at which pairs are also counted by class
_ROWS_SAMPLED = 2048  # to choose them
_MOST_CLASS_PAIRS = 1 << 15  # counted each on its own, 34 MB; beyond, by class
_RESAMPLES = 1000


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold that accepts as many genuine pairs as a false-accept rate allows."""

    threshold: float
    """Similarity; infinity where even the nearest impostor pair is too many."""
    true_accept_rate: float
    true_accept_interval: Interval
    false_accept_rate: float
    """What the threshold really gives: at most what was asked for, never the nearest to it."""
    false_accept_interval: Interval


@dataclass(frozen=True)
class PairCounts:
    """Pairs by similarity, and the most similar of them also by class; those of several parts add up."""

    histogram: Tensor
    """(2, bins) int64: impostor and genuine pairs."""
    genuine: Tensor
    """(C, T) int64: a class's genuine pairs from each level up to the next."""
    impostor: Tensor
    """The same of impostor pairs: (C * C, T) of the first's and the second's class, or of many classes (C, T)
    where both classes of a pair have counted it."""

    def __add__(self, other: "PairCounts") -> "PairCounts":
        return PairCounts(
            self.histogram + other.histogram, self.genuine + other.genuine, self.impostor + other.impostor
        )

    def cpu(self) -> "PairCounts":
        """The same, off the GPU."""
        return PairCounts(self.histogram.cpu(), self.genuine.cpu(), self.impostor.cpu())


@dataclass(frozen=True)
class ClassResamples:
    """What share of pairs each level accepts when as many classes are drawn, with replacement."""

    levels: Tensor
    """(T,) float64 similarities, descending."""
    true_accept_rates: Tensor
    """(R, T) float64, one row per resample."""
    false_accept_rates: Tensor
    """(R, T) float64."""
    largest_rate: float
    """The false-accept rate up to which the levels reach far enough."""


@dataclass(frozen=True)
class RocCurve:
    """How many pairs each threshold accepts; thresholds descend from infinity, which accepts none."""

    thresholds: Tensor
    """(T,) float64 similarities."""
    genuine: Tensor
    """(T,) int64: genuine pairs accepted; the last is all of them."""
    impostor: Tensor
    """(T,) int64: impostor pairs accepted; the last is all of them."""
    resamples: ClassResamples | None = None
    """For intervals; None: the classes of the pairs are not known."""

    @property
    def true_accept_rates(self) -> Tensor:
        """(T,) float64, ascending from 0 to 1."""
        return self.genuine.double() / self.genuine[-1]

    @property
    def false_accept_rates(self) -> Tensor:
        """(T,) float64, ascending from 0 to 1."""
        return self.impostor.double() / self.impostor[-1]

    def area(self) -> float:
        """Under the curve: how often a genuine pair is more similar than an impostor pair, ties half."""
        return float(torch.trapezoid(self.true_accept_rates, self.false_accept_rates))

    def equal_error_rate(self) -> float:
        """Where as large a share of impostors is accepted as of genuine pairs refused; straight between."""
        return float(_equal_error_rate(self.false_accept_rates[None], self.true_accept_rates[None]))

    def equal_error_interval(self, *, confidence: float = 0.95) -> Interval:
        """Of the equal error rate: percentile bootstrap over classes.

        Raises:
            ValueError: the classes of the pairs are not known, or none of the false-accept rates that the
                intervals were prepared for is as large as the equal error rate.
        """
        rate = self.equal_error_rate()
        if self.resamples is None:
            raise ValueError(
                "An interval of the equal error rate needs the pairs' classes; got pairs alone. Use "
                "roc_of_all_pairs."
            )
        if rate > self.resamples.largest_rate:
            raise ValueError(
                f"An interval of the equal error rate, {rate:.4g}, needs a false-accept rate as large; the "
                f"largest is {self.resamples.largest_rate}. Name a larger one in false_accept_rates."
            )
        return percentile_interval(_equal_error_rates(self.resamples), confidence=confidence)

    def at_false_accept_rate(self, rate: float, *, confidence: float = 0.95) -> OperatingPoint:
        """The most accepting threshold whose false-accept rate is at most `rate`, with intervals.

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
                f"were prepared; got {rate}. Name it in false_accept_rates when you count the pairs."
            )
        # In whole pairs: rounding of a quotient must not turn 10 of 1000 away at 0.01.
        allowed = int((self.impostor.double() <= rate * int(self.impostor[-1]) * (1 + 1e-12)).sum()) - 1
        genuine, impostor = int(self.genuine[allowed]), int(self.impostor[allowed])
        num_genuine, num_impostor = int(self.genuine[-1]), int(self.impostor[-1])
        threshold = float(self.thresholds[allowed])
        if self.resamples is None:
            true_accepts = wilson_interval(genuine, num_genuine, confidence=confidence)
            false_accepts = wilson_interval(impostor, num_impostor, confidence=confidence)
        else:
            true_accepts = percentile_interval(_true_accepts_at(self.resamples, rate), confidence=confidence)
            false_accepts = percentile_interval(
                _false_accepts_of(self.resamples, threshold), confidence=confidence
            )
        return OperatingPoint(
            threshold=threshold,
            true_accept_rate=genuine / num_genuine,
            true_accept_interval=true_accepts,
            false_accept_rate=impostor / num_impostor,
            false_accept_interval=false_accepts,
        )


def roc_of_pairs(similarities: Tensor, same: Tensor) -> RocCurve:
    """Exact, on given pairs.

    Args:
        similarities: (P,) float, of each pair.
        same: (P,) bool: genuine pairs.

    Returns:
        One threshold per different similarity, and infinity.

    Raises:
        ValueError: what are not (P,) numbers and (P,) truth values of one length, or no genuine or no
            impostor pair.
    """
    _check_pairs(similarities, same)
    levels, place = torch.unique(similarities.double(), return_inverse=True)
    genuine, impostor = (torch.bincount(place[kind], minlength=len(levels)) for kind in (same, ~same))
    return _curve(levels, genuine, impostor)


def roc_of_all_pairs(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ids: Tensor | None = None,
    bins: int = _BINS,
    false_accept_rates: Sequence[float] = (0.1,),
    resamples: int = _RESAMPLES,
) -> RocCurve:
    """All N(N-1)/2 pairs of different items, streamed into histograms of similarity.

    The counts at the bins' edges are exact: bins are powers of two, so no rounding moves a pair over an edge.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        ids: (N,) int64; pairs of equal id are one item and left out; None: all rows are items of their own.
        bins: of similarity over [-1, 1], a power of two.
        false_accept_rates: up to the largest of them `at_false_accept_rate` has intervals.
        resamples: of the classes, for the intervals.

    Raises:
        ValueError: as `count_pairs`, or no genuine or no impostor pair.
    """
    levels = levels_for(embeddings, labels, false_accept_rates, ids=ids, bins=bins)
    counts = count_pairs(embeddings, labels, slice(0, len(labels)), levels, ids=ids, bins=bins)
    largest = max(false_accept_rates)
    return roc_of_counts(counts, levels, labels, ids=ids, largest_rate=largest, resamples=resamples)


def levels_for(
    embeddings: Tensor,
    labels: Tensor,
    false_accept_rates: Sequence[float],
    *,
    ids: Tensor | None = None,
    bins: int = _BINS,
) -> Tensor:
    """Bins at whose lower edges pairs are counted by class: around and above the thresholds of the rates.

    Chosen on a sample of the rows, and dense towards the most similar impostor pairs. The lowest accepts
    about 1.5 + 10 / sqrt(C) times the largest rate, as the rates of resampled classes vary about theirs.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        false_accept_rates: each in (0, 1), one or more.
        ids: (N,) int64, or None, as `roc_of_all_pairs`.
        bins: of similarity over [-1, 1], a power of two.

    Returns:
        (T,) int64, ascending, on the CPU.

    Raises:
        ValueError: as `count_pairs`, or a rate outside (0, 1).
    """
    _check_all_pairs(embeddings, labels, ids, bins)
    false_accept_rates = checked_shares("false_accept_rates", false_accept_rates, usual=0.1)
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:_ROWS_SAMPLED]
    rows = rows.to(embeddings.device)
    is_impostor = labels[rows, None] != labels[None, rows]
    if ids is not None:
        is_impostor &= ids[rows, None] != ids[None, rows]
    places = _places_of(cosine_similarities(embeddings[rows], embeddings[rows]), bins)
    found = places[is_impostor.triu(1)].sort(descending=True).values.cpu().long()
    num_classes = len(torch.unique(labels))
    share = max(false_accept_rates) * (1.5 + 10 / num_classes**0.5)
    reach = int(share * len(found))
    lowest = found[reach : reach + 1] if reach < len(found) else found.new_zeros(1)
    above = torch.linspace(int(found[0]) if len(found) else 0, bins - 1, _LEVELS // 8).long()
    ranks = torch.logspace(0, 1, _LEVELS - len(above) - 1, base=max(min(reach, len(found)), 1)).long() - 1
    levels: Tensor = torch.unique(torch.cat([lowest, above, found[ranks] if len(found) else above]))
    return levels


def _check_all_pairs(embeddings: Tensor, labels: Tensor, ids: Tensor | None, bins: int) -> None:
    check_labelled(embeddings, labels, ids=ids)
    if not len(labels):
        raise ValueError("Verification needs pairs of one class and of two; got no item. Pass some.")
    if checked_count("bins", bins, at_least=2) & (bins - 1):
        raise ValueError(f"bins must be a power of two, 2 or more; got {bins}. {_BINS} is usual.")
    check_unit_rows(embeddings)


def _check_pairs(similarities: Tensor, same: Tensor) -> None:
    check_vector("similarities", similarities, "float")
    check_vector("same", same, "bool")
    check_equally_long(similarities=similarities, same=same)
    check_one_device(similarities=similarities, same=same)


def count_pairs(
    embeddings: Tensor,
    labels: Tensor,
    rows: slice,
    levels: Tensor,
    *,
    ids: Tensor | None = None,
    bins: int = _BINS,
) -> PairCounts:
    """Some of all pairs: those of each of `rows` with what comes after it. The counts of blocks add up.

    Memory: one tile, the histograms and 128 numbers a class, whatever N; over all rows half the work of a
    whole matrix product.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        rows: consecutive ones of the N.
        levels: (T,) int64 bins from which on pairs are also counted by class; of `levels_for`.
        ids: (N,) int64, or None, as `roc_of_all_pairs`.
        bins: of similarity over [-1, 1], a power of two.

    Raises:
        ValueError: different lengths, embeddings that are not rows of length 1, bins no power of two, levels
            that are not (T,) whole numbers, or rows with a step.
    """
    _check_all_pairs(embeddings, labels, ids, bins)
    check_vector("levels", levels, "int64")
    first_row, end, step = rows.indices(len(labels))
    if step != 1 or not len(levels):
        raise ValueError(
            f"rows must be consecutive, and levels one or more; got {rows}, {len(levels)} levels."
        )
    left_out, device = 2 * bins, embeddings.device
    counts = torch.zeros(2 * bins, dtype=torch.int64, device=device)
    places_of = torch.arange(len(labels), device=device)
    by_class = _ClassTables(labels, levels.to(device), bins)
    for start in range(first_row, end, _TILE_ROWS):
        own = slice(start, min(start + _TILE_ROWS, end))
        for first in range(start, len(labels), _TILE_COLUMNS):
            others = slice(first, first + _TILE_COLUMNS)
            places = _places_of(cosine_similarities(embeddings[own], embeddings[others]), bins)
            is_near = places >= by_class.lowest
            places += (labels[own, None] == labels[None, others]).int().mul_(bins)
            if ids is not None:
                places.masked_fill_(ids[own, None] == ids[None, others], left_out)
            if first < own.stop:  # here each pair would be seen twice, and each row meet itself
                places.masked_fill_(places_of[None, others] <= places_of[own, None], left_out)
            counts += torch.bincount(places.view(-1), minlength=2 * bins + 1)[:left_out]
            by_class.add(places, is_near, own.start, others.start)
    return PairCounts(counts.view(2, bins), by_class.genuine, by_class.impostor)


def _places_of(similarities: Tensor, bins: int) -> Tensor:
    """The bin of each similarity, int32, of the similarities' own memory."""
    return similarities.mul_(bins / 2).floor_().clamp_(-bins / 2, bins / 2 - 1).int().add_(bins // 2)


class _ClassTables:
    """Counts near pairs by class and level."""

    def __init__(self, labels: Tensor, levels: Tensor, bins: int) -> None:
        self.classes = torch.unique(labels, return_inverse=True)[1]
        self.num_classes = int(self.classes.max()) + 1 if len(labels) else 0
        self.by_pair = _by_pair(self.num_classes)
        self.bins, self.lowest, self.num_levels = bins, int(levels[0]), len(levels)
        self.level_of = torch.searchsorted(levels, torch.arange(bins, device=levels.device), right=True) - 1
        num_rows = self.num_classes**2 if self.by_pair else self.num_classes
        self.genuine = self.classes.new_zeros(self.num_classes, self.num_levels)
        self.impostor = self.classes.new_zeros(num_rows, self.num_levels)

    def add(self, places: Tensor, is_near: Tensor, first_row: int, first_column: int) -> None:
        """Count the near pairs of a tile; places beyond 2 * bins are left out."""
        near = is_near.view(-1).nonzero()[:, 0]
        near = near[places.view(-1)[near] < 2 * self.bins]
        found = places.view(-1)[near].long()
        first = self.classes[first_row + near // places.shape[1]]
        second = self.classes[first_column + near % places.shape[1]]
        level = self.level_of[found % self.bins]
        is_genuine = found >= self.bins
        self._count(self.genuine, first, level, is_genuine)
        if self.by_pair:
            self._count(self.impostor, first * self.num_classes + second, level, ~is_genuine)
        else:
            self._count(self.impostor, first, level, ~is_genuine)
            self._count(self.impostor, second, level, ~is_genuine)

    def _count(self, table: Tensor, rows: Tensor, level: Tensor, chosen: Tensor) -> None:
        # Not by bincount, which would make a table for every tile.
        table.view(-1).scatter_add_(0, rows * self.num_levels + level, chosen.long())


def _by_pair(num_classes: int) -> bool:
    return num_classes**2 <= _MOST_CLASS_PAIRS


def roc_of_counts(
    counts: PairCounts,
    levels: Tensor,
    labels: Tensor,
    *,
    ids: Tensor | None = None,
    largest_rate: float = 0.1,
    resamples: int = _RESAMPLES,
) -> RocCurve:
    """The curve of all pairs from what `count_pairs` has counted, with its resamples of classes.

    Args:
        counts: of all rows.
        levels: those counted at.
        labels: (N,) int64, as counted.
        ids: as counted.
        largest_rate: for which the levels were chosen.
        resamples: of the classes.

    Raises:
        ValueError: no genuine or no impostor pair, no resample, or a rate outside (0, 1).
    """
    check_vector("levels", levels, "int64")
    check_vector("labels", labels, "int64")
    largest_rate = checked_share("largest_rate", largest_rate, usual=0.1)
    impostor, genuine = counts.histogram
    bins = len(genuine)
    edges = (torch.arange(bins, dtype=torch.float64, device=genuine.device) - bins / 2) / (bins / 2)
    resampled = _resampled(counts, edges[levels.to(edges.device)], labels, ids, resamples, largest_rate)
    return _curve(edges, genuine, impostor, resampled)


def _resampled(
    counts: PairCounts,
    levels: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    resamples: int,
    largest_rate: float,
) -> ClassResamples:
    """Draw classes; a class drawn w times has its genuine pairs w times, two of them w v impostor pairs.

    Pairs of one class's copies are left out: they would be of an item with itself. Of many classes the
    impostor pairs are known by class, not by pair, and w v is taken as w + v - 1 (Hajek's projection). What
    that leaves away is of the order of 1 / C: at C = 220 intervals of the true-accept rate are 3 % off, of
    the false-accept rate a fifth too narrow.
    """
    genuine, impostor = (
        table.cpu().double().flip(1).cumsum(1) for table in (counts.genuine, counts.impostor)
    )
    num_genuine, num_impostor = (table.cpu().double() for table in _pairs_by_class(labels, ids))
    num_classes = len(genuine)
    true_rates, false_rates = [], []
    if _by_pair(num_classes):
        # A pair stands in one of two places, whichever of its items comes first.
        square = impostor.view(num_classes, num_classes, -1)
        first, second = torch.triu_indices(num_classes, num_classes, 1)
        impostor, num_impostor = (square + square.transpose(0, 1))[first, second], num_impostor[first, second]
    else:
        num_impostor = num_impostor.sum(1)
    for weights in class_weights(num_classes, resamples, seed=0):
        if _by_pair(num_classes):
            of_pairs = weights[:, first] * weights[:, second]
            accepted, total = of_pairs @ impostor, of_pairs @ num_impostor
        else:
            accepted, total = (weights @ table - table.sum(0) / 2 for table in (impostor, num_impostor))
        true_rates.append(_share(weights @ genuine, weights @ num_genuine))
        false_rates.append(_share(accepted.clamp_min(0), total))
    return ClassResamples(levels.cpu().flip(0), torch.cat(true_rates), torch.cat(false_rates), largest_rate)


def _pairs_by_class(labels: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """(C,) genuine pairs; impostor pairs (C, C) of each two classes, or of many classes (C, 1) of each."""
    classes, sizes = torch.unique(labels, return_inverse=True, return_counts=True)[1:]
    genuine = sizes * (sizes - 1) // 2
    by_pair = _by_pair(len(sizes))
    impostor = sizes[:, None] * sizes if by_pair else (sizes * (len(labels) - sizes))[:, None]
    if ids is None:
        return genuine, impostor
    items, copies = torch.unique(ids, return_inverse=True, return_counts=True)[1:]
    groups, held = torch.unique(classes * len(copies) + items, return_counts=True)  # of one class and one id
    classes, items = groups // len(copies), groups % len(copies)
    genuine = genuine.index_add(0, classes, -(held * (held - 1) // 2))
    if by_pair:
        table = torch.zeros(len(sizes), len(copies), dtype=torch.float64, device=labels.device)
        table[classes, items] = held.double()
        return genuine, impostor - (table @ table.T).long()
    return genuine, impostor.index_add(0, classes, -(held * (copies[items] - held))[:, None])


def _equal_error_rate(false_accept_rates: Tensor, true_accept_rates: Tensor) -> Tensor:
    """(R,) of ascending rates (R, T) that begin with 0 and end with 1; straight between."""
    gap = 1 - true_accept_rates - false_accept_rates  # from 1 to -1: what crosses 0 is never the first
    after = (gap <= 0).int().argmax(1, keepdim=True)
    (low, high), (above, below) = (
        (v.gather(1, after - 1), v.gather(1, after)) for v in (false_accept_rates, gap)
    )
    return (low + above / (above - below) * (high - low))[:, 0]


def _equal_error_rates(resamples: ClassResamples) -> Tensor:
    """(R,) of each resample; before the first level nothing is accepted, and behind the last one all."""
    ends = (
        torch.nn.functional.pad(torch.nn.functional.pad(rates, (1, 0)), (0, 1), value=1.0)
        for rates in (resamples.false_accept_rates, resamples.true_accept_rates)
    )
    false_accept_rates, true_accept_rates = ends
    return _equal_error_rate(false_accept_rates.cummax(1).values, true_accept_rates)


def _true_accepts_at(resamples: ClassResamples, rate: float) -> Tensor:
    """(R,) true-accept rates where each resample's false-accept rate is `rate`; straight between levels."""
    # Before the first level nothing is accepted.
    false_rates, true_rates = (
        torch.nn.functional.pad(rates, (1, 0))
        for rates in (resamples.false_accept_rates, resamples.true_accept_rates)
    )
    false_rates = false_rates.cummax(1).values
    target = torch.full((len(false_rates), 1), rate, dtype=false_rates.dtype)
    after = torch.searchsorted(false_rates, target, right=True).clamp_max(false_rates.shape[1] - 1)
    ends = [(rates.gather(1, after - 1), rates.gather(1, after)) for rates in (false_rates, true_rates)]
    (low, high), (accepted, next_accepted) = ends
    share = ((rate - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    return (accepted + share * (next_accepted - accepted))[:, 0]


def _false_accepts_of(resamples: ClassResamples, threshold: float) -> Tensor:
    """(R,) false-accept rates of one threshold; straight between levels."""
    ascending, rates = resamples.levels.flip(0), resamples.false_accept_rates.flip(1)
    rates = torch.nn.functional.pad(rates, (0, 1))  # behind the last level nothing is accepted
    ascending = torch.cat([ascending, ascending.new_full((1,), 1.0 + 1e-9)])
    after = int(torch.searchsorted(ascending, threshold, right=True).clamp(1, len(ascending) - 1))
    low, high = float(ascending[after - 1]), float(ascending[after])
    share = min(max((threshold - low) / (high - low), 0.0), 1.0)
    return rates[:, after - 1] + share * (rates[:, after] - rates[:, after - 1])


def _share(accepted: Tensor, total: Tensor) -> Tensor:
    """(R, T) of (R, T) and (R,); 0 where a resample has no such pair."""
    return accepted / total.clamp_min(1)[:, None]


def _curve(
    levels: Tensor, genuine: Tensor, impostor: Tensor, resamples: ClassResamples | None = None
) -> RocCurve:
    """From ascending levels and the pairs at each."""
    if not genuine.sum() or not impostor.sum():
        raise ValueError(
            f"Verification needs pairs of one class and of two; got {int(genuine.sum())} genuine and "
            f"{int(impostor.sum())} impostor pairs. Give items of two classes or more, one of them twice."
        )
    infinity = levels.new_full((1,), torch.inf)
    none = genuine.new_zeros(1)
    return RocCurve(
        torch.cat([infinity, levels.flip(0)]),
        torch.cat([none, genuine.flip(0).cumsum(0)]),
        torch.cat([none, impostor.flip(0).cumsum(0)]),
        resamples,
    )


@dataclass(frozen=True)
class FoldAccuracy:
    """Share of pairs told right, each fold by the threshold that was best on the others."""

    mean: float
    deviation: float
    """Of the folds, with their number as divisor, as LFW's tables print it."""
    folds: list[float]


def k_fold_accuracy(
    similarities: Tensor, same: Tensor, *, folds: Tensor | None = None, num_folds: int = 10
) -> FoldAccuracy:
    """LFW's protocol: 10 folds, thresholds 0, 0.01 .. 3.99 of squared distance, the lowest of the best ones.

    Args:
        similarities: (P,) float, cosine, of each pair.
        same: (P,) bool: genuine pairs.
        folds: (P,) int64, which fold each pair is of, as the benchmark's list says; None: `num_folds`
            blocks of equal length in the order given, which is LFW's own list's.
        num_folds: where `folds` is None.

    Raises:
        ValueError: what are not (P,) numbers, truth values and whole numbers of one length, or fewer than two
            folds or pairs.

    Source: Huang et al. 2007, Labeled Faces in the Wild, image-restricted.
    """
    _check_pairs(similarities, same)
    if folds is None:
        if checked_count("num_folds", num_folds, at_least=2) > len(same):
            raise ValueError(
                f"num_folds must lie in [2, number of pairs]; got {num_folds} of {len(same)}. Lower it."
            )
        parts = torch.arange(len(same), device=same.device).tensor_split(num_folds)
        folds = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
    check_vector("folds", folds, "int64")
    check_equally_long(similarities=similarities, same=same, folds=folds)
    check_one_device(similarities=similarities, folds=folds)
    thresholds = torch.arange(400, dtype=torch.float64, device=similarities.device) / 100
    distances = squared_distances(similarities.double())
    right, sizes = [], []
    for fold in torch.unique(folds):
        mine, genuine = folds == fold, same
        near = torch.searchsorted(distances[mine & genuine].sort().values, thresholds)
        far = torch.searchsorted(distances[mine & ~genuine].sort().values, thresholds)
        right.append(near + (mine & ~genuine).sum() - far)  # accepted where the distance is below
        sizes.append(int(mine.sum()))
    if len(sizes) < 2:
        raise ValueError(f"folds must name two folds or more; got {len(sizes)}. Deal the pairs out.")
    table = torch.stack(right)
    best = (table.sum(0) - table).argmax(1)
    accuracies = torch.tensor(
        [int(row[place]) / size for row, place, size in zip(table, best, sizes, strict=True)],
        dtype=torch.float64,
    )
    return FoldAccuracy(float(accuracies.mean()), float(accuracies.std(correction=0)), accuracies.tolist())

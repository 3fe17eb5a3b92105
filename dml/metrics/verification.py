"""Is it the same one, or not? Errors of accepting a pair by its similarity, on given pairs or on all of them.

A pair is accepted where its similarity is at least the threshold. Genuine pairs share a class, impostor pairs
don't. Intervals are Wilson's and take pairs as independent; pairs that share an item are not quite.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dml.metrics.intervals import Interval, wilson_interval
from dml.metrics.ranking import check_finite
from dml.similarity import cosine_similarities, squared_distances

# A tile is what a core keeps near; of few rows and all columns, the product would read everything for each.
_TILE_ROWS, _TILE_COLUMNS = 512, 2048
_BINS = 1 << 16  # of similarity, each 2 / 65536 = 0.00003 wide


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
class RocCurve:
    """How many pairs each threshold accepts; thresholds descend from infinity, which accepts none."""

    thresholds: Tensor
    """(T,) float64 similarities."""
    genuine: Tensor
    """(T,) int64: genuine pairs accepted; the last is all of them."""
    impostor: Tensor
    """(T,) int64: impostor pairs accepted; the last is all of them."""

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
        accepted, refused = self.false_accept_rates, 1 - self.true_accept_rates
        crossed = int((accepted >= refused).int().argmax())
        gap = refused - accepted
        before, after = float(gap[crossed - 1]), float(gap[crossed])  # at infinity it is 1: never the first
        share = before / (before - after)
        return float(accepted[crossed - 1] + share * (accepted[crossed] - accepted[crossed - 1]))

    def at_false_accept_rate(self, rate: float, *, confidence: float = 0.95) -> OperatingPoint:
        """The most accepting threshold whose false-accept rate is at most `rate`, with intervals.

        Raises:
            ValueError: a rate outside (0, 1).
        """
        if not 0 < rate < 1:
            raise ValueError(f"A false-accept rate must lie in (0, 1); got {rate}. 0.001 is usual.")
        # In whole pairs: rounding of a quotient must not turn 10 of 1000 away at 0.01.
        allowed = int((self.impostor.double() <= rate * int(self.impostor[-1]) * (1 + 1e-12)).sum()) - 1
        genuine, impostor = int(self.genuine[allowed]), int(self.impostor[allowed])
        num_genuine, num_impostor = int(self.genuine[-1]), int(self.impostor[-1])
        return OperatingPoint(
            threshold=float(self.thresholds[allowed]),
            true_accept_rate=genuine / num_genuine,
            true_accept_interval=wilson_interval(genuine, num_genuine, confidence=confidence),
            false_accept_rate=impostor / num_impostor,
            false_accept_interval=wilson_interval(impostor, num_impostor, confidence=confidence),
        )


def roc_of_pairs(similarities: Tensor, same: Tensor) -> RocCurve:
    """Exact, on given pairs.

    Args:
        similarities: (P,) float, of each pair.
        same: (P,) bool: genuine pairs.

    Returns:
        One threshold per different similarity, and infinity.

    Raises:
        ValueError: different lengths, a similarity that is no number, or no genuine or no impostor pair.
    """
    if len(similarities) != len(same):
        raise ValueError(
            f"similarities and same must be equally long; got {len(similarities)} and {len(same)}."
        )
    check_finite(similarities, "similarities")
    levels, place = torch.unique(similarities.double(), return_inverse=True)
    counts = [torch.bincount(place[kind], minlength=len(levels)) for kind in (same.bool(), ~same.bool())]
    return _curve(levels, *counts)


def roc_of_all_pairs(
    embeddings: Tensor, labels: Tensor, *, ids: Tensor | None = None, bins: int = _BINS
) -> RocCurve:
    """All N(N-1)/2 pairs of different items, streamed into histograms of similarity.

    The counts at the bins' edges are exact: bins are powers of two, so no rounding moves a pair over an edge.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        ids: (N,) int64; pairs of equal id are one item and left out; None: all rows are items of their own.
        bins: of similarity over [-1, 1], a power of two.

    Raises:
        ValueError: as `count_pairs`, or no genuine or no impostor pair.
    """
    return roc_of_counts(count_pairs(embeddings, labels, slice(0, len(labels)), ids=ids, bins=bins))


def count_pairs(
    embeddings: Tensor, labels: Tensor, rows: slice, *, ids: Tensor | None = None, bins: int = _BINS
) -> Tensor:
    """Some of all pairs: those of each of `rows` with what comes after it. Stretches' counts add up.

    Memory: one tile and the histograms, whatever N; over all rows half the work of a whole matrix product.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        rows: a stretch of the N, start and stop given.
        ids: (N,) int64, or None, as `roc_of_all_pairs`.
        bins: of similarity over [-1, 1], a power of two.

    Returns:
        (2, bins) int64: impostor and genuine pairs by similarity.

    Raises:
        ValueError: different lengths, an embedding that is no number, or bins no power of two.
    """
    if bins < 2 or bins & (bins - 1):
        raise ValueError(f"bins must be a power of two, 2 or more; got {bins}. {_BINS} is usual.")
    if len(embeddings) != len(labels) or (ids is not None and len(ids) != len(labels)):
        raise ValueError(
            f"embeddings, labels and ids must be equally long; got {len(embeddings)}, {len(labels)}"
            f"{'' if ids is None else f', {len(ids)}'}."
        )
    check_finite(embeddings, "embeddings")
    left_out = 2 * bins
    counts = torch.zeros(2 * bins, dtype=torch.int64, device=embeddings.device)
    places_of = torch.arange(len(labels), device=embeddings.device)
    for start in range(rows.start, rows.stop, _TILE_ROWS):
        own = slice(start, min(start + _TILE_ROWS, rows.stop))
        for first in range(start, len(labels), _TILE_COLUMNS):
            others = slice(first, first + _TILE_COLUMNS)
            places = cosine_similarities(embeddings[own], embeddings[others])
            places = places.mul_(bins / 2).floor_().clamp_(-bins / 2, bins / 2 - 1).int().add_(bins // 2)
            places += (labels[own, None] == labels[None, others]).int().mul_(bins)
            if ids is not None:
                places.masked_fill_(ids[own, None] == ids[None, others], left_out)
            if first < own.stop:  # here each pair would be seen twice, and each row meet itself
                places.masked_fill_(places_of[None, others] <= places_of[own, None], left_out)
            counts += torch.bincount(places.view(-1), minlength=2 * bins + 1)[:left_out]
    return counts.view(2, bins)


def roc_of_counts(counts: Tensor) -> RocCurve:
    """From (2, bins) pairs of `count_pairs`; raises ValueError for no genuine or no impostor pair."""
    bins = counts.shape[1]
    edges = (torch.arange(bins, dtype=torch.float64, device=counts.device) - bins / 2) / (bins / 2)
    impostor, genuine = counts
    return _curve(edges, genuine, impostor)


def _curve(levels: Tensor, genuine: Tensor, impostor: Tensor) -> RocCurve:
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
            stretches of equal length in the order given, which is LFW's own list's.
        num_folds: where `folds` is None.

    Raises:
        ValueError: different lengths, a similarity that is no number, or fewer than two folds or pairs.

    Source: Huang et al. 2007, Labeled Faces in the Wild, image-restricted.
    """
    if folds is None:
        if not 2 <= num_folds <= len(same):
            raise ValueError(
                f"num_folds must lie in [2, number of pairs]; got {num_folds} for {len(same)} pairs."
            )
        parts = torch.arange(len(same), device=same.device).tensor_split(num_folds)
        folds = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
    if not len(similarities) == len(same) == len(folds):
        raise ValueError(
            f"similarities, same and folds must be equally long; got {len(similarities)}, {len(same)}, "
            f"{len(folds)}."
        )
    check_finite(similarities, "similarities")
    thresholds = torch.arange(400, dtype=torch.float64, device=similarities.device) / 100
    distances = squared_distances(similarities.double())
    right, sizes = [], []
    for fold in torch.unique(folds):
        mine, genuine = folds == fold, same.bool()
        near = torch.searchsorted(distances[mine & genuine].sort().values, thresholds)
        far = torch.searchsorted(distances[mine & ~genuine].sort().values, thresholds)
        right.append(near + (mine & ~genuine).sum() - far)  # accepted where the distance is below
        sizes.append(int(mine.sum()))
    if len(sizes) < 2:
        raise ValueError(f"folds must name two folds or more; got {len(sizes)}.")
    table = torch.stack(right)
    best = (table.sum(0) - table).argmax(1)
    accuracies = torch.tensor(
        [int(row[place]) / size for row, place, size in zip(table, best, sizes, strict=True)],
        dtype=torch.float64,
    )
    return FoldAccuracy(float(accuracies.mean()), float(accuracies.std(correction=0)), accuracies.tolist())

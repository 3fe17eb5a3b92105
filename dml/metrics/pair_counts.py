"""Histograms of the similarities of all pairs of labelled embeddings, and resampling of them by class.

Pairs that share a class or an item are not independent, so confidence intervals must resample whole classes.
Therefore the most similar pairs are also counted by their two classes. More than `MAX_GROUPS` classes are
divided into that number of random groups, and groups are resampled (Wolter 2007, Introduction to Variance
Estimation, ch. 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dml.metrics.arguments import check_unit_rows, checked_count, checked_shares
from dml.metrics.intervals import class_weights
from dml.metrics.ranking import Items
from dml.similarity import cosine_similarities

BINS = 1 << 16
"""Number of similarity bins over [-1, 1]; each is 2 / 65536 = 0.00003 wide."""
TILE, GPU_TILE = (512, 2048), (4096, 4096)
"""Rows and columns of a block of the similarity matrix: the first fits the cache of a core; a GPU's costs 300
launches of some microseconds, whatever its size, and is compared in as long."""
MAX_GROUPS = 100
"""The table of their pairs has 100 x 100 x 128 numbers, 10 MB. The width of an interval varies by 7 %."""
_NUM_LEVELS = 128
_ROWS_SAMPLED = 2048  # to choose the levels
_SETS_AT_A_TIME = 1 << 12
_RESAMPLES_AT_A_TIME = 64  # 5,050 weights each, 3 MB


@dataclass(frozen=True)
class Levels:
    """Similarity levels above which pairs are also counted by class, near the thresholds of the rates."""

    first_bins: Tensor
    """(T,) int64, ascending, on the CPU: the first bin of each level."""
    num_bins: int
    largest_rate: float
    """The false-accept rate up to which the levels reach."""

    @property
    def similarities(self) -> Tensor:
        """(T,) float64, ascending: the lower edges of the first bins."""
        return edges(self.num_bins)[self.first_bins]


@dataclass(frozen=True)
class PairCounts:
    """Counts of pairs by similarity, and of the most similar also by class; counts of blocks can be added."""

    impostor: Tensor
    """(bins,) int64."""
    genuine: Tensor
    """(bins,) int64."""
    by_group: Tensor
    """(G + G * G, T) int64, counts between a level and the next: first the genuine pairs of each group of
    classes, then the impostor pairs of each two groups."""

    def __add__(self, other: "PairCounts") -> "PairCounts":
        return PairCounts(
            self.impostor + other.impostor, self.genuine + other.genuine, self.by_group + other.by_group
        )

    def cpu(self) -> "PairCounts":
        """The same counts on the CPU."""
        return PairCounts(self.impostor.cpu(), self.genuine.cpu(), self.by_group.cpu())


@dataclass(frozen=True)
class Resamples:
    """Accept rates of bootstrap resamples of the classes, or of groups of classes, with replacement."""

    levels: Tensor
    """(T,) float64 similarities, descending."""
    true_accept_rates: Tensor
    """(R, T) float64, ascending, one row per resample."""
    false_accept_rates: Tensor
    """(R, T) float64, ascending."""
    largest_rate: float
    """The false-accept rate up to which the levels reach."""

    def true_accept_rates_at(self, false_accept_rate: float) -> Tensor:
        """(R,) rates at the threshold of each resample for this false-accept rate; linear between levels."""
        false_rates, true_rates = self._from_nothing()
        target = torch.full((len(false_rates), 1), false_accept_rate, dtype=false_rates.dtype)
        after = torch.searchsorted(false_rates, target, right=True).clamp_max(false_rates.shape[1] - 1)
        low, high = false_rates.gather(1, after - 1), false_rates.gather(1, after)
        accepted, next_accepted = true_rates.gather(1, after - 1), true_rates.gather(1, after)
        share = ((false_accept_rate - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
        return (accepted + share * (next_accepted - accepted))[:, 0]

    def false_accept_rates_at(self, threshold: float) -> Tensor:
        """(R,) rates at one threshold; linear between levels."""
        rates = torch.nn.functional.pad(self.false_accept_rates.flip(1), (0, 1))
        levels = torch.cat([self.levels.flip(0), self.levels.new_full((1,), 1.0 + 1e-9)])  # accepts nothing
        after = int(torch.searchsorted(levels, threshold, right=True).clamp(1, len(levels) - 1))
        low, high = float(levels[after - 1]), float(levels[after])
        share = min(max((threshold - low) / (high - low), 0.0), 1.0)
        return rates[:, after - 1] + share * (rates[:, after] - rates[:, after - 1])

    def equal_error_rates(self) -> Tensor:
        """(R,) equal error rates; below the last level all pairs are accepted."""
        false_rates, true_rates = (
            torch.nn.functional.pad(rates, (0, 1), value=1.0) for rates in self._from_nothing()
        )
        return equal_error_rates(false_rates, true_rates)

    def _from_nothing(self) -> tuple[Tensor, Tensor]:
        """False- and true-accept rates, preceded by a level that accepts nothing."""
        false_rates, true_rates = (
            torch.nn.functional.pad(rates, (1, 0))
            for rates in (self.false_accept_rates, self.true_accept_rates)
        )
        return false_rates.cummax(1).values, true_rates


def edges(num_bins: int) -> Tensor:
    """(num_bins,) float64: the lower edge of each bin; exact in floating point, so rounding moves no pair."""
    return (torch.arange(num_bins, dtype=torch.float64) - num_bins / 2) / (num_bins / 2)


def equal_error_rates(false_accept_rates: Tensor, true_accept_rates: Tensor) -> Tensor:
    """(R,) rates where false accepts equal false rejects, by linear interpolation.

    Args:
        false_accept_rates: (R, T), ascending from 0 to 1.
        true_accept_rates: the same.
    """
    gap = 1 - true_accept_rates - false_accept_rates  # from 1 to -1: the first value is never the crossing
    after = (gap <= 0).int().argmax(1, keepdim=True)
    low, high = false_accept_rates.gather(1, after - 1), false_accept_rates.gather(1, after)
    above, below = gap.gather(1, after - 1), gap.gather(1, after)
    crossings: Tensor = low + above / (above - below) * (high - low)
    return crossings.squeeze(1)


def levels_for(items: Items, false_accept_rates: Sequence[float], *, bins: int = BINS) -> Levels:
    """Choose the levels on a sample of the rows, denser for the most similar impostor pairs.

    The lowest level has about 1.5 + 10 / sqrt(C) times the largest rate, because the rates of resamples vary.

    Args:
        items: (N, D) with labels; pairs of equal ids are left out.
        false_accept_rates: each in (0, 1), one or more.
        bins: of similarity over [-1, 1], a power of two.

    Raises:
        ValueError: no row, rows not of length 1, a rate outside (0, 1), or bins no power of two.
    """
    largest_rate = max(checked_shares("false_accept_rates", false_accept_rates, usual=0.1))
    if checked_count("bins", bins, at_least=2) & (bins - 1):
        raise ValueError(f"bins must be a power of two, 2 or more; got {bins}. {BINS} is usual.")
    if not len(items.labels):
        raise ValueError("Verification needs pairs of the same class and of different classes; got no item.")
    check_unit_rows(items.embeddings)
    rows = torch.randperm(len(items.labels), generator=torch.Generator().manual_seed(0))[:_ROWS_SAMPLED]
    sample = items.select(rows.to(items.labels.device))
    is_impostor = sample.labels[:, None] != sample.labels
    if sample.ids is not None:
        is_impostor &= sample.ids[:, None] != sample.ids
    bins_of_pairs = _bin_indices(cosine_similarities(sample.embeddings, sample.embeddings), bins)
    impostors = torch.bincount(bins_of_pairs[is_impostor.triu(1)], minlength=bins).cpu()
    num_impostors = int(impostors.sum())
    if not num_impostors:
        first_bins = torch.linspace(0, bins - 1, _NUM_LEVELS // 8).long()
        return Levels(torch.unique(first_bins), bins, largest_rate)

    def bins_at(ranks: Tensor) -> Tensor:
        """The bins of the impostor pairs with these ranks, from 0, by descending similarity."""
        return bins - 1 - torch.searchsorted(impostors.flip(0).cumsum(0), ranks, right=True)

    reach = int(largest_rate * (1.5 + 10 / len(torch.unique(items.labels)) ** 0.5) * num_impostors)
    lowest = bins_at(torch.tensor([reach])).clamp_min(0)
    above = torch.linspace(int(bins_at(torch.tensor([0]))), bins - 1, _NUM_LEVELS // 8).long()
    most = max(min(reach, num_impostors), 1)
    ranks = torch.logspace(0, 1, _NUM_LEVELS - len(above) - 1, base=most).long() - 1
    return Levels(torch.unique(torch.cat([lowest, above, bins_at(ranks)])), bins, largest_rate)


def count_pairs(
    items: Items, levels: Levels, rows: slice = slice(None), *, tile: tuple[int, int] | None = None
) -> PairCounts:
    """Count the pairs of each of `rows` with all later rows. Add the counts of blocks to get all pairs.

    Memory: one tile, the histogram and the table of groups, for any N. All rows together cost half of a
    matrix product.

    Args:
        items: (N, D) with labels; pairs of equal ids are left out.
        levels: of `levels_for` with the same items.
        rows: consecutive ones.
        tile: rows and columns compared at a time; None: as many as suit the device.

    Raises:
        ValueError: rows not of length 1, or with a step.
    """
    check_unit_rows(items.embeddings)
    start, stop, step = rows.indices(len(items.labels))
    if step != 1:
        raise ValueError(f"rows must be consecutive; got {rows}. Pass slice(start, stop).")
    embeddings, labels, ids, device = items.embeddings, items.labels, items.ids, items.labels.device
    tile = tile or (TILE if device.type == "cpu" else GPU_TILE)
    num_bins = levels.num_bins
    excluded = 2 * num_bins  # the bin of pairs that are not counted
    histogram = torch.zeros(2 * num_bins, dtype=torch.int64, device=device)
    positions = torch.arange(len(labels), device=device)
    table = _GroupTable(labels, levels)
    for first_row in range(start, stop, tile[0]):
        block = slice(first_row, min(first_row + tile[0], stop))
        for first_column in range(first_row, len(labels), tile[1]):
            others = slice(first_column, first_column + tile[1])
            bins = _bin_indices(cosine_similarities(embeddings[block], embeddings[others]), num_bins)
            is_near = bins >= table.lowest_bin
            bins += (labels[block, None] == labels[None, others]).int().mul_(num_bins)  # genuine: upper half
            if ids is not None:
                bins.masked_fill_(ids[block, None] == ids[None, others], excluded)
            if first_column < block.stop:  # exclude second counts of a pair, and a row with itself
                bins.masked_fill_(positions[None, others] <= positions[block, None], excluded)
            histogram += torch.bincount(bins.view(-1), minlength=2 * num_bins + 1)[:excluded]
            table.add(bins, is_near, first_row, first_column)
    return PairCounts(histogram[:num_bins], histogram[num_bins:], table.counts)


def _bin_indices(similarities: Tensor, num_bins: int) -> Tensor:
    """The bin of each similarity, int32; computed in place."""
    half = num_bins / 2
    return similarities.mul_(half).floor_().clamp_(-half, half - 1).int().add_(num_bins // 2)


def class_groups(labels: Tensor) -> Tensor:
    """(N,) int64: the class of each row, numbered from 0, or its group if there are over `MAX_GROUPS`."""
    classes: Tensor = torch.unique(labels, return_inverse=True)[1]
    num_classes = int(classes.max()) + 1 if len(classes) else 0
    if num_classes <= MAX_GROUPS:
        return classes
    group_of_class = torch.randperm(num_classes, generator=torch.Generator().manual_seed(0)) % MAX_GROUPS
    return group_of_class.to(classes.device)[classes]


class _GroupTable:
    """Counts similar pairs by level and groups, for `PairCounts.by_group`."""

    def __init__(self, labels: Tensor, levels: Levels) -> None:
        self._groups = class_groups(labels)
        self._num_groups = int(self._groups.max()) + 1
        self._num_bins, self._num_levels = levels.num_bins, len(levels.first_bins)
        self.lowest_bin = int(levels.first_bins[0])
        level_of_bin = torch.searchsorted(levels.first_bins, torch.arange(levels.num_bins), right=True) - 1
        self._level_of_bin = level_of_bin.to(labels.device)
        num_rows = self._num_groups * (self._num_groups + 1)
        self.counts = self._groups.new_zeros(num_rows, self._num_levels)

    def add(self, bins: Tensor, is_near: Tensor, first_row: int, first_column: int) -> None:
        """Count the similar pairs of a tile; bins from 2 * num_bins on are excluded."""
        near = is_near.view(-1).nonzero()[:, 0]
        near = near[bins.view(-1)[near] < 2 * self._num_bins]
        near_bins = bins.view(-1)[near].long()
        first = self._groups[first_row + near // bins.shape[1]]
        second = self._groups[first_column + near % bins.shape[1]]
        is_genuine = near_bins >= self._num_bins
        rows = torch.where(is_genuine, first, self._num_groups * (first + 1) + second)
        cells = rows * self._num_levels + self._level_of_bin[near_bins % self._num_bins]
        # Not with bincount, which allocates a table for every tile.
        self.counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))


def resampled(counts: PairCounts, levels: Levels, items: Items, resamples: int) -> Resamples:
    """Resample classes or groups with weights w: a pair counts w times within a class, w v times between two.

    Pairs between copies of the same class are excluded: they would compare an item with itself.

    Args:
        counts: of all rows.
        levels: those counted at.
        items: those counted.
        resamples: how many.
    """
    groups = class_groups(items.labels).cpu()
    num_groups = int(groups.max()) + 1
    first, second = torch.triu_indices(num_groups, num_groups)
    by_group = counts.by_group.cpu().double().flip(1).cumsum(1)
    genuine, impostor = by_group[:num_groups], by_group[num_groups:].view(num_groups, num_groups, -1)
    # A pair of groups is counted in one of two cells, depending on the order of its items.
    impostor = (impostor + impostor.transpose(0, 1)).index_put(
        (torch.arange(num_groups),) * 2, impostor.diagonal().T
    )[first, second]
    num_genuine, num_impostor = _totals(groups, items)
    num_impostor = num_impostor[first, second]
    true_rates, false_rates = [], []
    within = (first == second).nonzero()[:, 0]
    drawn = class_weights(num_groups, resamples, seed=0)
    for weights in (part for block in drawn for part in torch.split(block, _RESAMPLES_AT_A_TIME)):
        of_two = weights.index_select(1, first).mul_(weights.index_select(1, second))
        of_two[:, within] = weights  # pairs of two classes of one group
        true_rates.append(_share(weights @ genuine, weights @ num_genuine))
        false_rates.append(_share(of_two @ impostor, of_two @ num_impostor))
    similarities = levels.similarities.flip(0)
    return Resamples(similarities, torch.cat(true_rates), torch.cat(false_rates), levels.largest_rate)


def _totals(groups: Tensor, items: Items) -> tuple[Tensor, Tensor]:
    """Numbers of pairs, float64: (G,) genuine pairs per group, (G, G) impostor pairs per two groups."""
    num_groups = int(groups.max()) + 1
    classes = torch.unique(items.labels.cpu(), return_inverse=True)[1]
    genuine, all_pairs = _pairs_within(classes, groups, num_groups), _pairs_between(groups, num_groups)
    if items.ids is not None:  # subtract pairs with the same id
        ids = torch.unique(items.ids.cpu(), return_inverse=True)[1]
        of_class = torch.unique(classes * len(ids) + ids, return_inverse=True)[1]
        genuine -= _pairs_within(of_class, groups, num_groups)
        all_pairs -= _pairs_between(groups, num_groups, ids)
    return genuine, all_pairs - genuine.diag()


def _pairs_within(sets: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(G,) pairs of rows in the same set, by the group of the set."""
    sizes = torch.bincount(sets).double()
    group_of_set = groups.new_zeros(len(sizes)).scatter(0, sets, groups)
    pairs = torch.zeros(num_groups, dtype=torch.float64)
    return pairs.index_add(0, group_of_set, sizes * (sizes - 1) / 2)


def _pairs_between(groups: Tensor, num_groups: int, sets: Tensor | None = None) -> Tensor:
    """(G, G) pairs of rows by their groups; with `sets` only pairs in the same set."""
    sets = torch.zeros_like(groups) if sets is None else sets
    pairs = torch.zeros(num_groups, num_groups, dtype=torch.float64)
    for start in range(0, int(sets.max()) + 1, _SETS_AT_A_TIME):
        chosen = ((sets >= start) & (sets < start + _SETS_AT_A_TIME)).nonzero()[:, 0]
        cells = groups[chosen] * _SETS_AT_A_TIME + sets[chosen] - start
        rows = torch.bincount(cells, minlength=num_groups * _SETS_AT_A_TIME).view(num_groups, -1).double()
        pairs += rows @ rows.T
    sizes = torch.bincount(groups, minlength=num_groups).double()
    return pairs - (pairs.diagonal() + sizes).diag() / 2


def _share(accepted: Tensor, total: Tensor) -> Tensor:
    """(R, T) accepted fraction; 0 if a resample has no such pair."""
    return accepted / total.clamp_min(1)[:, None]

"""All pairs of labelled embeddings, counted by similarity in blocks, and those counts resampled by class.

Pairs that share a class, let alone an item, err together, so an interval has to draw whole classes. For that
the most similar pairs are also counted by their two classes. More than `MOST_GROUPS` classes are dealt into
so many groups at random, and groups are drawn (Wolter 2007, Introduction to Variance Estimation, ch. 2).
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
"""Of similarity over [-1, 1], each 2 / 65536 = 0.00003 wide."""
TILE = (512, 2048)
"""Rows and columns compared at a time, which a core's cache holds."""
MOST_GROUPS = 100
"""The table of their pairs has 100 x 100 x 128 numbers, 10 MB. An interval's width scatters by 7 %."""
_NUM_LEVELS = 128
_ROWS_SAMPLED = 2048  # to choose the levels
_SETS_AT_A_TIME = 1 << 12
_RESAMPLES_AT_A_TIME = 64  # 5,050 weights each, 3 MB


@dataclass(frozen=True)
class Levels:
    """Similarities from which on pairs are also counted by class: around and above the rates' thresholds."""

    first_bins: Tensor
    """(T,) int64, ascending, on the CPU: each level's first bin."""
    num_bins: int
    largest_rate: float
    """The false-accept rate up to which the levels reach."""

    @property
    def similarities(self) -> Tensor:
        """(T,) float64, ascending: the lower edges of the first bins."""
        return edges(self.num_bins)[self.first_bins]


@dataclass(frozen=True)
class PairCounts:
    """Pairs by similarity, and the most similar of them also by class; those of several blocks add up."""

    impostor: Tensor
    """(bins,) int64."""
    genuine: Tensor
    """(bins,) int64."""
    by_group: Tensor
    """(G + G * G, T) int64, from each level up to the next: the genuine pairs of each group of classes, then
    the impostor pairs of each two."""

    def __add__(self, other: "PairCounts") -> "PairCounts":
        return PairCounts(
            self.impostor + other.impostor, self.genuine + other.genuine, self.by_group + other.by_group
        )

    def cpu(self) -> "PairCounts":
        """The same, off the GPU."""
        return PairCounts(self.impostor.cpu(), self.genuine.cpu(), self.by_group.cpu())


@dataclass(frozen=True)
class Resamples:
    """Shares of pairs accepted when as many classes (or groups of classes) are drawn, with replacement."""

    levels: Tensor
    """(T,) float64 similarities, descending."""
    true_accept_rates: Tensor
    """(R, T) float64, ascending, one row per resample."""
    false_accept_rates: Tensor
    """(R, T) float64, ascending."""
    largest_rate: float
    """The false-accept rate up to which the levels reach."""

    def true_accept_rates_at(self, false_accept_rate: float) -> Tensor:
        """(R,) where each resample's own threshold gives that false-accept rate; straight between levels."""
        false_rates, true_rates = self._from_nothing()
        target = torch.full((len(false_rates), 1), false_accept_rate, dtype=false_rates.dtype)
        after = torch.searchsorted(false_rates, target, right=True).clamp_max(false_rates.shape[1] - 1)
        low, high = false_rates.gather(1, after - 1), false_rates.gather(1, after)
        accepted, next_accepted = true_rates.gather(1, after - 1), true_rates.gather(1, after)
        share = ((false_accept_rate - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
        return (accepted + share * (next_accepted - accepted))[:, 0]

    def false_accept_rates_at(self, threshold: float) -> Tensor:
        """(R,) of one threshold; straight between levels."""
        rates = torch.nn.functional.pad(self.false_accept_rates.flip(1), (0, 1))
        levels = torch.cat([self.levels.flip(0), self.levels.new_full((1,), 1.0 + 1e-9)])  # accepts nothing
        after = int(torch.searchsorted(levels, threshold, right=True).clamp(1, len(levels) - 1))
        low, high = float(levels[after - 1]), float(levels[after])
        share = min(max((threshold - low) / (high - low), 0.0), 1.0)
        return rates[:, after - 1] + share * (rates[:, after] - rates[:, after - 1])

    def equal_error_rates(self) -> Tensor:
        """(R,); behind the last level everything is accepted."""
        false_rates, true_rates = (
            torch.nn.functional.pad(rates, (0, 1), value=1.0) for rates in self._from_nothing()
        )
        return equal_error_rates(false_rates, true_rates)

    def _from_nothing(self) -> tuple[Tensor, Tensor]:
        """False- and true-accept rates with a level before the first, which accepts nothing."""
        false_rates, true_rates = (
            torch.nn.functional.pad(rates, (1, 0))
            for rates in (self.false_accept_rates, self.true_accept_rates)
        )
        return false_rates.cummax(1).values, true_rates


def edges(num_bins: int) -> Tensor:
    """(num_bins,) float64: the lower edge of each bin; powers of two apart, so no rounding moves a pair."""
    return (torch.arange(num_bins, dtype=torch.float64) - num_bins / 2) / (num_bins / 2)


def equal_error_rates(false_accept_rates: Tensor, true_accept_rates: Tensor) -> Tensor:
    """(R,) where as large a share of impostors is accepted as of genuine pairs refused; straight between.

    Args:
        false_accept_rates: (R, T), ascending from 0 to 1.
        true_accept_rates: the same.
    """
    gap = 1 - true_accept_rates - false_accept_rates  # from 1 to -1: what crosses 0 is never the first
    after = (gap <= 0).int().argmax(1, keepdim=True)
    low, high = false_accept_rates.gather(1, after - 1), false_accept_rates.gather(1, after)
    above, below = gap.gather(1, after - 1), gap.gather(1, after)
    crossings: Tensor = low + above / (above - below) * (high - low)
    return crossings.squeeze(1)


def levels_for(items: Items, false_accept_rates: Sequence[float], *, bins: int = BINS) -> Levels:
    """Choose the levels on a sample of the rows, dense towards the most similar impostor pairs.

    The lowest accepts about 1.5 + 10 / sqrt(C) times the largest rate, as the rates of resampled classes vary
    about theirs.

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
        raise ValueError("Verification needs pairs of one class and of two; got no item. Pass some.")
    check_unit_rows(items.embeddings)
    rows = torch.randperm(len(items.labels), generator=torch.Generator().manual_seed(0))[:_ROWS_SAMPLED]
    sample = items.of(rows.to(items.labels.device))
    is_impostor = sample.labels[:, None] != sample.labels
    if sample.ids is not None:
        is_impostor &= sample.ids[:, None] != sample.ids
    bins_of_pairs = _bins_of(cosine_similarities(sample.embeddings, sample.embeddings), bins)
    impostors = torch.bincount(bins_of_pairs[is_impostor.triu(1)], minlength=bins).cpu()
    num_impostors = int(impostors.sum())
    if not num_impostors:
        first_bins = torch.linspace(0, bins - 1, _NUM_LEVELS // 8).long()
        return Levels(torch.unique(first_bins), bins, largest_rate)

    def bins_at(ranks: Tensor) -> Tensor:
        """Of the impostor pairs of these ranks, from 0; the most similar first."""
        return bins - 1 - torch.searchsorted(impostors.flip(0).cumsum(0), ranks, right=True)

    reach = int(largest_rate * (1.5 + 10 / len(torch.unique(items.labels)) ** 0.5) * num_impostors)
    lowest = bins_at(torch.tensor([reach])).clamp_min(0)
    above = torch.linspace(int(bins_at(torch.tensor([0]))), bins - 1, _NUM_LEVELS // 8).long()
    most = max(min(reach, num_impostors), 1)
    ranks = torch.logspace(0, 1, _NUM_LEVELS - len(above) - 1, base=most).long() - 1
    return Levels(torch.unique(torch.cat([lowest, above, bins_at(ranks)])), bins, largest_rate)


def count_pairs(
    items: Items, levels: Levels, rows: slice = slice(None), *, tile: tuple[int, int] = TILE
) -> PairCounts:
    """Some of all pairs: those of each of `rows` with what comes after it. The counts of blocks add up.

    Memory: one tile, the histogram and the table of groups, whatever N; over all rows half the work of a
    whole matrix product.

    Args:
        items: (N, D) with labels; pairs of equal ids are left out.
        levels: of `levels_for` with the same items.
        rows: consecutive ones.
        tile: rows and columns compared at a time.

    Raises:
        ValueError: rows not of length 1, or with a step.
    """
    check_unit_rows(items.embeddings)
    start, stop, step = rows.indices(len(items.labels))
    if step != 1:
        raise ValueError(f"rows must be consecutive; got {rows}. Pass slice(start, stop).")
    embeddings, labels, ids, device = items.embeddings, items.labels, items.ids, items.labels.device
    num_bins = levels.num_bins
    left_out = 2 * num_bins
    histogram = torch.zeros(2 * num_bins, dtype=torch.int64, device=device)
    positions = torch.arange(len(labels), device=device)
    table = _GroupTable(labels, levels)
    for first_row in range(start, stop, tile[0]):
        block = slice(first_row, min(first_row + tile[0], stop))
        for first_column in range(first_row, len(labels), tile[1]):
            others = slice(first_column, first_column + tile[1])
            bins = _bins_of(cosine_similarities(embeddings[block], embeddings[others]), num_bins)
            is_near = bins >= table.lowest_bin
            bins += (labels[block, None] == labels[None, others]).int().mul_(num_bins)  # genuine: upper half
            if ids is not None:
                bins.masked_fill_(ids[block, None] == ids[None, others], left_out)
            if first_column < block.stop:  # here each pair would be seen twice, and each row meet itself
                bins.masked_fill_(positions[None, others] <= positions[block, None], left_out)
            histogram += torch.bincount(bins.view(-1), minlength=2 * num_bins + 1)[:left_out]
            table.add(bins, is_near, first_row, first_column)
    return PairCounts(histogram[:num_bins], histogram[num_bins:], table.counts)


def _bins_of(similarities: Tensor, num_bins: int) -> Tensor:
    """The bin of each similarity, int32; the similarities are overwritten."""
    half = num_bins / 2
    return similarities.mul_(half).floor_().clamp_(-half, half - 1).int().add_(num_bins // 2)


def groups_of(labels: Tensor) -> Tensor:
    """(N,) int64: each row's class, numbered from 0; of more than `MOST_GROUPS` classes its class's group."""
    classes: Tensor = torch.unique(labels, return_inverse=True)[1]
    num_classes = int(classes.max()) + 1 if len(classes) else 0
    if num_classes <= MOST_GROUPS:
        return classes
    dealt = torch.randperm(num_classes, generator=torch.Generator().manual_seed(0)) % MOST_GROUPS
    return dealt.to(classes.device)[classes]


class _GroupTable:
    """Counts near pairs by level and groups, as `PairCounts.by_group`."""

    def __init__(self, labels: Tensor, levels: Levels) -> None:
        self._groups = groups_of(labels)
        self._num_groups = int(self._groups.max()) + 1
        self._num_bins, self._num_levels = levels.num_bins, len(levels.first_bins)
        self.lowest_bin = int(levels.first_bins[0])
        level_of_bin = torch.searchsorted(levels.first_bins, torch.arange(levels.num_bins), right=True) - 1
        self._level_of_bin = level_of_bin.to(labels.device)
        num_rows = self._num_groups * (self._num_groups + 1)
        self.counts = self._groups.new_zeros(num_rows, self._num_levels)

    def add(self, bins: Tensor, is_near: Tensor, first_row: int, first_column: int) -> None:
        """Count the near pairs of a tile; bins from 2 * num_bins on are left out."""
        near = is_near.view(-1).nonzero()[:, 0]
        near = near[bins.view(-1)[near] < 2 * self._num_bins]
        near_bins = bins.view(-1)[near].long()
        first = self._groups[first_row + near // bins.shape[1]]
        second = self._groups[first_column + near % bins.shape[1]]
        is_genuine = near_bins >= self._num_bins
        rows = torch.where(is_genuine, first, self._num_groups * (first + 1) + second)
        cells = rows * self._num_levels + self._level_of_bin[near_bins % self._num_bins]
        # Not by bincount, which would make a table for every tile.
        self.counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))


def resampled(counts: PairCounts, levels: Levels, items: Items, resamples: int) -> Resamples:
    """Draw classes, or groups: the pairs of one drawn w times count w times, of two drawn w and v w v times.

    Pairs of one class's copies are left out: they would be of an item with itself.

    Args:
        counts: of all rows.
        levels: those counted at.
        items: those counted.
        resamples: how many.
    """
    groups = groups_of(items.labels).cpu()
    num_groups = int(groups.max()) + 1
    first, second = torch.triu_indices(num_groups, num_groups)
    by_group = counts.by_group.cpu().double().flip(1).cumsum(1)
    genuine, impostor = by_group[:num_groups], by_group[num_groups:].view(num_groups, num_groups, -1)
    # A pair is counted in one of two cells, whichever of its items comes first.
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
    """All pairs, float64: (G,) genuine ones of each group and (G, G) impostor ones of each two."""
    num_groups = int(groups.max()) + 1
    classes = torch.unique(items.labels.cpu(), return_inverse=True)[1]
    genuine, all_pairs = _pairs_within(classes, groups, num_groups), _pairs_between(groups, num_groups)
    if items.ids is not None:  # less those that share an id
        ids = torch.unique(items.ids.cpu(), return_inverse=True)[1]
        of_class = torch.unique(classes * len(ids) + ids, return_inverse=True)[1]
        genuine -= _pairs_within(of_class, groups, num_groups)
        all_pairs -= _pairs_between(groups, num_groups, ids)
    return genuine, all_pairs - genuine.diag()


def _pairs_within(sets: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(G,) pairs of rows of one set, by the group that the set lies in."""
    sizes = torch.bincount(sets).double()
    group_of_set = groups.new_zeros(len(sizes)).scatter(0, sets, groups)
    pairs = torch.zeros(num_groups, dtype=torch.float64)
    return pairs.index_add(0, group_of_set, sizes * (sizes - 1) / 2)


def _pairs_between(groups: Tensor, num_groups: int, sets: Tensor | None = None) -> Tensor:
    """(G, G) pairs of rows by their groups; where sets are given, of those that share one."""
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
    """(R, T) of (R, T) and (R,); 0 where a resample has no such pair."""
    return accepted / total.clamp_min(1)[:, None]

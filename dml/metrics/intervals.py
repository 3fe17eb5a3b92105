"""Confidence intervals of rates and means, and significance tests between two models.

Queries of one class share its images, so they err together; resampling classes, the default wherever classes
are given, keeps that in the interval. Resampling queries pretends they are independent, and is narrower.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from dml.metrics.arguments import (
    check_same_length,
    check_vector,
    checked_count,
    checked_number,
    checked_share,
)

BLOCK_ELEMENTS = 1 << 22
"""Resampled classes in one block."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Result of a paired test of two models on the same queries."""

    gain: float
    """Mean difference, first model minus second model."""
    interval: Interval
    """Two-sided bootstrap interval of the gain."""
    p_value: float
    """One-sided p-value of the sign-flip test."""


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a rate of independent trials; valid also for 0, 1 and few trials.

    Raises:
        ValueError: no trials, more successes than trials, counts that are not whole numbers, or a confidence
            outside (0, 1).

    Source: Wilson 1927, JASA 22(158), the score interval without continuity correction.
    """
    trials = checked_count("trials", trials)
    successes = checked_count("successes", successes, at_least=0)
    if successes > trials:
        raise ValueError(
            f"successes must be at most the trials; got {successes} of {trials}. Count both again."
        )
    checked_share("confidence", confidence, usual=0.95)
    return _score_interval(successes / trials, trials, confidence)


def _score_interval(share: float, trials: float, confidence: float) -> Interval:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    wide = z * z / trials
    middle = (share + wide / 2) / (1 + wide)
    half = math.sqrt(share * (1 - share) * wide + wide * wide / 4) / (1 + wide)
    return Interval(0.0 if share == 0 else middle - half, 1.0 if share == 1 else middle + half)


def clustered_wilson_interval(events: Tensor, classes: Tensor, *, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a rate whose trials of one class err together, also for rates near 0.

    As many independent trials are counted as give the variance between classes: N / (design effect). Where
    no trial or every trial is an event nothing is known of that effect, and each class counts once.

    Args:
        events: (N,) bool.
        classes: (N,) int64, such as the identity of each probe.
        confidence: of the two-sided interval.

    Raises:
        ValueError: other types, different lengths, no trial, or a confidence outside (0, 1).

    Source: Korn and Graubard 1998, Survey Methodology 24(2), effective sample size; Wilson 1927.

    Example:
        >>> events = torch.tensor([False] * 1000)
        >>> round(clustered_wilson_interval(events, torch.arange(1000) // 20).high, 3)  # 50 people
        0.071
    """
    check_vector("events", events, "bool")
    check_vector("classes", classes, "int64")
    check_same_length(events=events, classes=classes)
    confidence = checked_share("confidence", confidence, usual=0.95)
    if not len(events):
        raise ValueError("events must have at least one trial; got none. Pass one value per trial.")
    dense, sizes = torch.unique(classes.cpu(), return_inverse=True, return_counts=True)[1:]
    num_trials, num_classes = len(events), len(sizes)
    share = float(events.double().mean())
    trials = float(num_classes)
    if 0 < share < 1 and num_classes > 1:
        sums = torch.bincount(dense, weights=events.cpu().double(), minlength=num_classes)
        surplus = float((sums - share * sizes).square().sum()) * num_classes / (num_classes - 1)
        design_effect = surplus / num_trials**2 / (share * (1 - share) / num_trials)
        trials = max(num_trials / max(design_effect, 1.0), 1.0)
    return _score_interval(share, trials, confidence)


def bootstrap_intervals(
    values: Mapping[str, Tensor],
    classes: Tensor | None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    block_elements: int = BLOCK_ELEMENTS,
) -> dict[str, Interval]:
    """Percentile bootstrap of the mean over queries, of every metric on the same resamples.

    Args:
        values: name to (Q,) float64, one value per query.
        classes: (Q,) int64: whole classes are resampled, with replacement; None: single queries.
        resamples: number of resamples; the error of the interval decreases with the square root.
        confidence: of the two-sided interval.
        seed: of the resamples, which are the same on every device.
        block_elements: resampled classes in one block.

    Returns:
        Name to interval; both ends are the mean where all queries agree.

    Raises:
        ValueError: no metric, what is not (Q,) finite numbers, fewer than one resample, a confidence outside
            (0, 1), or fewer than two classes (or queries, where single ones are drawn): one says nothing of
            others.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13; classes as clusters: ch. 8.
    """
    if not isinstance(values, Mapping) or not values:
        kind = "none" if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(
            f'values must contain at least one metric; got {kind}. Pass {{"recall_at_1": values}}.'
        )
    for name, column in values.items():
        check_vector(name, column, "number")
    check_same_length(**values)
    checked_share("confidence", confidence, usual=0.95)
    table = torch.stack([column.cpu().double() for column in values.values()], dim=1)
    sums, sizes = _by_class(table, classes)
    drawn = class_weights(len(sizes), resamples, seed=seed, block_elements=block_elements)
    means = torch.cat([weights @ sums / (weights @ sizes)[:, None] for weights in drawn])
    columns = zip(values, means.T, strict=True)
    return {name: percentile_interval(column, confidence=confidence) for name, column in columns}


def compare_paired(
    first: Tensor,
    second: Tensor,
    classes: Tensor | None,
    *,
    margin: float = 0.0,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Paired test: is the first model better than the second on the same queries by more than `margin`?

    The p-value is of the sign-flip test: were the gain no more than `margin`, each class's surplus over it
    could as well have come with the other sign. It is the share of random signs with a surplus as large, the
    one observed among them, so it is never 0.

    Args:
        first: (Q,) float, one value per query.
        second: (Q,) float, values of the other model for the same queries in the same order.
        classes: (Q,) int64: all queries of a class get the same random sign; None: single queries.
        margin: minimum gain.
        resamples: number of random sign vectors, and of bootstrap resamples.
        confidence: of the interval.
        seed: of both.

    Raises:
        ValueError: different lengths, a margin that is no number, or what `bootstrap_intervals` refuses.

    Source: Smucker et al. 2007, CIKM, "A comparison of statistical significance tests for IR evaluation".
    """
    check_vector("first", first, "number")
    check_vector("second", second, "number")
    if len(first) != len(second):
        raise ValueError(
            f"Both models must have values for the same queries; got {len(first)} and {len(second)} values. "
            "Pass one value per query for both."
        )
    margin = checked_number("margin", margin)
    gains = (first.double() - second.double()).cpu()
    interval = bootstrap_intervals(
        {"gain": gains}, classes, resamples=resamples, confidence=confidence, seed=seed
    )["gain"]
    surplus = _by_class(gains[:, None] - margin, classes)[0][:, 0]
    as_large = _as_large_by_chance(surplus, rounding=1e-12 * len(gains), resamples=resamples, seed=seed)
    return Comparison(float(gains.mean()), interval, (1 + as_large) / (1 + resamples))


def _as_large_by_chance(surplus: Tensor, *, rounding: float, resamples: int, seed: int) -> int:
    """The number of sums with random signs that are at least as large as the observed sum.

    Args:
        surplus: (C,) float64.
        rounding: tolerance for equal sums in another order; a tie counts as at least as large.
        resamples: number of random sign vectors.
        seed: of the signs.
    """
    generator, observed = torch.Generator().manual_seed(seed), float(surplus.sum())
    as_large = 0
    for count in _blocks(resamples, len(surplus), BLOCK_ELEMENTS):
        signs = torch.randint(0, 2, (count, len(surplus)), generator=generator, dtype=torch.int8)
        flipped = (signs.double() * 2 - 1) @ surplus
        as_large += int((flipped >= observed - rounding).sum())
    return as_large


def _by_class(table: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    """(C, M) sums and (C,) sizes of the classes; of single queries if `classes` is None."""
    if classes is None:
        if len(table) < 2:
            raise ValueError(
                f"An interval needs two queries or more; got {len(table)}. Evaluate on more with a positive."
            )
        return table, torch.ones(len(table), dtype=torch.float64)
    check_vector("classes", classes, "int64")
    check_same_length(values=table, classes=classes)
    dense, sizes = torch.unique(classes.cpu(), return_inverse=True, return_counts=True)[1:]
    if len(sizes) < 2:
        raise ValueError(
            f"An interval over classes needs queries of two classes or more; got {len(sizes)}. Evaluate on "
            "more classes, or resample single queries: classes=None."
        )
    sums = torch.zeros(len(sizes), table.shape[1], dtype=torch.float64).index_add_(0, dense, table)
    return sums, sizes.double()


def class_weights(
    num_classes: int, resamples: int, *, seed: int, block_elements: int = BLOCK_ELEMENTS
) -> Iterator[Tensor]:
    """Bootstrap weights (block, C) float64: counts of each class in C samples with replacement, in blocks.

    Raises:
        ValueError: no class, fewer than one resample, or a seed that is no whole number.
    """
    num_classes = checked_count("num_classes", num_classes)
    seed = checked_count("seed", seed, at_least=None)
    generator = torch.Generator().manual_seed(seed)
    for count in _blocks(resamples, num_classes, block_elements):
        drawn = torch.randint(0, num_classes, (count, num_classes), generator=generator)
        first_cells = torch.arange(count)[:, None] * num_classes
        weights = torch.bincount((drawn + first_cells).flatten(), minlength=count * num_classes)
        yield weights.view(count, num_classes).double()


def percentile_interval(values: Tensor, *, confidence: float = 0.95) -> Interval:
    """The percentile interval of resampled values (R,) float64; raises ValueError if there are none."""
    check_vector("values", values, "float")
    if not len(values):
        raise ValueError("values must have at least one resample; got none.")
    tail = (1 - checked_share("confidence", confidence, usual=0.95)) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return Interval(low, high)


def _blocks(resamples: int, num_classes: int, block_elements: int) -> Iterator[int]:
    resamples = checked_count("resamples", resamples)
    block = max(checked_count("block_elements", block_elements) // num_classes, 1)
    for start in range(0, resamples, block):
        yield min(block, resamples - start)

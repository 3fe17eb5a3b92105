"""Intervals cover as often as they say, and the paired test calls noise noise and a gain a gain."""

import itertools
import math

import pytest
import torch
from scipy import stats

from dml.metrics.intervals import bootstrap_intervals, class_weights, compare_paired, wilson_interval


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 40), (1, 40), (16, 25), (40, 40), (7, 10**6)])
def test_the_interval_of_a_share_is_scipys_wilson(successes, trials, confidence):
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    interval = wilson_interval(successes, trials, confidence=confidence)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


Y = torch.arange(9)


def plain_bootstrap(values, classes, resamples, seed):
    """The same draws, one class at a time."""
    generator = torch.Generator().manual_seed(seed)
    members = [[i for i, c in enumerate(classes) if c == label] for label in sorted(set(classes))]
    means = []
    for _ in range(resamples):
        drawn = torch.randint(0, len(members), (1, len(members)), generator=generator)[0].tolist()
        queries = [i for label in drawn for i in members[label]]
        means.append(math.fsum(values[i] for i in queries) / len(queries))
    return means


@pytest.mark.parametrize("by", ["class", "query"])
@pytest.mark.parametrize("block_elements", [1, 1 << 22], ids=["by resample", "at once"])
@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_is_the_loop_over_its_draws(seed, block_elements, by):
    generator = torch.Generator().manual_seed(seed + 50)
    values = torch.rand(40, generator=generator, dtype=torch.float64)
    classes = (torch.rand(40, generator=generator) ** 2 * 9).long() * 3 - 4
    keys = classes.tolist() if by == "class" else list(range(40))
    means = torch.tensor(plain_bootstrap(values.tolist(), keys, 200, seed), dtype=torch.float64)
    interval = bootstrap_intervals(
        {"a": values, "b": 1 - values},
        classes if by == "class" else None,
        resamples=200,
        confidence=0.9,
        seed=seed,
        block_elements=block_elements,
    )
    expected = torch.quantile(means, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    assert [interval["a"].low, interval["a"].high] == pytest.approx(expected, abs=1e-12)
    assert [1 - interval["b"].high, 1 - interval["b"].low] == pytest.approx(expected, abs=1e-12)


def test_queries_of_a_class_that_err_together_need_classes_to_be_drawn():
    """Means of 40 classes whose 25 queries are copies: drawing queries covers far less often than it says."""
    covered = {"class": 0, "query": 0}
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        classes = torch.arange(40).repeat_interleave(25)
        values = {"x": torch.randn(40, generator=generator, dtype=torch.float64).repeat_interleave(25)}
        for by, keys in (("class", classes), ("query", None)):
            interval = bootstrap_intervals(values, keys, resamples=200, seed=seed)["x"]
            covered[by] += interval.low <= 0 <= interval.high
    assert covered["class"] >= 88
    assert covered["query"] <= 50


def plain_p_value(gains, classes, margin):
    """All sign patterns, exactly."""
    surplus = [
        math.fsum(g - margin for g, c in zip(gains, classes, strict=True) if c == label)
        for label in sorted(set(classes))
    ]
    observed = math.fsum(surplus)
    patterns = list(itertools.product((-1, 1), repeat=len(surplus)))
    as_large = sum(
        math.fsum(s * v for s, v in zip(signs, surplus, strict=True)) >= observed - 1e-12
        for signs in patterns
    )
    return as_large / len(patterns)


@pytest.mark.parametrize("margin", [0.0, 0.05])
@pytest.mark.parametrize("by", ["class", "query"])
@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_is_that_of_all_sign_patterns(seed, by, margin):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(0, 2, (12,), generator=generator).double() for _ in range(2))
    classes = torch.randint(0, 8, (12,), generator=generator)
    keys = classes.tolist() if by == "class" else list(range(12))
    actual = compare_paired(
        first, second, classes if by == "class" else None, margin=margin, resamples=20_000
    )
    assert actual.gain == pytest.approx(float((first - second).mean()))
    assert actual.p_value == pytest.approx(plain_p_value((first - second).tolist(), keys, margin), abs=0.012)


def test_noise_passes_as_seldom_as_the_confidence_says_and_a_gain_passes():
    wrong, right = 0, 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        classes = torch.arange(50).repeat_interleave(4)
        easy = torch.rand(50, generator=generator).repeat_interleave(4)
        first, same, better = (
            (torch.rand(200, generator=generator) < easy + lift).double() for lift in (0, 0, 0.2)
        )
        wrong += compare_paired(same, first, classes, resamples=300, seed=seed).p_value <= 0.05
        right += compare_paired(better, first, classes, resamples=300, seed=seed).p_value <= 0.05
    assert wrong <= 20  # 10 expected, standard deviation 3
    assert right >= 180


@pytest.mark.parametrize("resamples", [1, 2, 3, 7])
def test_the_requested_number_of_resamples_is_drawn_in_blocks_of_any_size(resamples):
    at_once = torch.cat(list(class_weights(5, resamples, seed=0)))
    assert at_once.shape == (resamples, 5)
    assert (at_once.sum(1) == 5).all(), "each draws as many classes as there are"
    blocks = list(class_weights(5, resamples, seed=0, block_elements=10))
    assert [len(block) for block in blocks] == [2] * (resamples // 2) + [1] * (resamples % 2)
    torch.testing.assert_close(torch.cat(blocks), at_once)


@pytest.mark.parametrize("resamples", [1, 99])
def test_the_smallest_p_value_is_one_over_one_more_than_the_resamples(resamples):
    better = compare_paired(torch.ones(60), torch.zeros(60), torch.arange(60), resamples=resamples)
    assert better.p_value == 1 / (1 + resamples)


def test_a_model_against_itself_gains_nothing_and_is_never_better():
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    actual = compare_paired(values, values, torch.arange(30) // 3)
    assert (actual.gain, actual.interval.low, actual.interval.high, actual.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(0, 0), "trial"),
        (lambda: wilson_interval(3, 2), "3 of 2"),
        (lambda: wilson_interval(1, 2, confidence=95), "95"),
        (lambda: bootstrap_intervals({"x": torch.ones(0)}, None), "two queries or more; got 0"),
        (lambda: bootstrap_intervals({"x": torch.ones(1)}, None), "two queries or more; got 1"),
        (lambda: bootstrap_intervals({"x": torch.ones(3)}, Y[:3] * 0), "two classes or more; got 1"),
        (lambda: compare_paired(torch.ones(3), torch.zeros(3), Y[:3] * 0), "two classes or more; got 1"),
        (lambda: bootstrap_intervals({"x": torch.ones(3), "y": torch.ones(2)}, None), "same length"),
        (lambda: bootstrap_intervals({"x": torch.ones(3)}, Y[:2]), "same length"),
        (lambda: bootstrap_intervals({"x": torch.ones(3)}, None, resamples=0), "resamples"),
        (lambda: compare_paired(torch.ones(3), torch.ones(2), None), "same queries"),
    ],
)
def test_what_has_no_interval_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

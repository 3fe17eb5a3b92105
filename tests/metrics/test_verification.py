"""Verification is what counting pairs one by one gives, exactly, however they are streamed."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from dml.metrics.intervals import class_weights, wilson_interval
from dml.metrics.pair_counts import MAX_GROUPS, class_groups, count_pairs, levels_for
from dml.metrics.ranking import Items
from dml.metrics.verification import k_fold_accuracy, roc_of_all_pairs, roc_of_counts, roc_of_pairs
from tests.metrics.cases import balanced, duplicates, people, single_items, ties, uneven

CASES = [balanced, uneven, ties, duplicates, single_items]


def few(case, seed):
    """What loops over thresholds and pairs can do in a moment."""
    embeddings, labels = case(seed)
    return embeddings[:40], labels[:40]


def all_pairs(embeddings, labels, ids=None):
    similarities = embeddings @ embeddings.T
    return [
        (float(similarities[i, j]), bool(labels[i] == labels[j]))
        for i, j in itertools.combinations(range(len(labels)), 2)
        if ids is None or ids[i] != ids[j]
    ]


def counted(pairs, threshold):
    """Genuine and impostor pairs accepted."""
    return tuple(sum(s >= threshold and same == kind for s, same in pairs) for kind in (True, False))


def as_tensors(pairs):
    return torch.tensor([s for s, _ in pairs], dtype=torch.float64), torch.tensor([k for _, k in pairs])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_threshold_accepts_the_pairs_counted_one_by_one(case):
    pairs = all_pairs(*few(case, 0))
    curve = roc_of_pairs(*as_tensors(pairs))
    assert curve.thresholds.tolist() == sorted({s for s, _ in pairs} | {math.inf}, reverse=True)
    for place in range(0, len(curve.thresholds), 7):
        threshold = float(curve.thresholds[place])
        assert (int(curve.genuine[place]), int(curve.impostor[place])) == counted(pairs, threshold)


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize(
    "tile", [(1, 100), (7, 3), (5, 13), (100, 100)], ids=["by row", "tall tiles", "wide tiles", "at once"]
)
@pytest.mark.parametrize("bins", [2, 64, 1 << 16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_streamed_histograms_hold_exactly_the_pairs_above_each_edge(case, bins, tile, with_ids):
    embeddings, labels = few(case, 1)
    ids = torch.arange(len(labels)) // 2 if with_ids else None
    items = Items(embeddings, labels, ids)
    levels = levels_for(items, (0.1,), bins=bins)
    curve = roc_of_counts(count_pairs(items, levels, tile=tile), levels, items, resamples=1)
    pairs = all_pairs(embeddings, labels, ids)
    assert (int(curve.genuine[-1]), int(curve.impostor[-1])) == (
        sum(same for _, same in pairs),
        sum(not same for _, same in pairs),
    )
    for place in range(1, len(curve.thresholds) - 1, max(bins // 12, 1)):
        # The loop's sums and the blocks' differ by rounding: only pairs that far from the edge can be told.
        low, high = (counted(pairs, float(curve.thresholds[place]) + by) for by in (1e-12, -1e-12))
        assert low[0] <= int(curve.genuine[place]) <= high[0]
        assert low[1] <= int(curve.impostor[place]) <= high[1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_area_is_scikit_learns(case):
    similarities, same = as_tensors(all_pairs(*few(case, 2)))
    assert roc_of_pairs(similarities, same).area() == pytest.approx(roc_auc_score(same, similarities))


def plain_equal_error_rate(pairs):
    num_genuine = sum(same for _, same in pairs)
    points = [(0.0, 1.0)]
    for threshold in sorted({s for s, _ in pairs}, reverse=True):
        genuine, impostor = counted(pairs, threshold)
        points.append((impostor / (len(pairs) - num_genuine), 1 - genuine / num_genuine))
    for (far, frr), (next_far, next_frr) in itertools.pairwise(points):
        if next_far >= next_frr:
            # On the straight line between the points, where both errors are equal.
            share = (frr - far) / ((frr - far) + (next_far - next_frr))
            return far + share * (next_far - far)
    raise AssertionError


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_equal_error_rate_is_that_of_the_plain_loop(case):
    pairs = all_pairs(*few(case, 3))
    expected = plain_equal_error_rate(pairs)
    assert roc_of_pairs(*as_tensors(pairs)).equal_error_rate() == pytest.approx(expected, abs=1e-12)
    streamed = roc_of_all_pairs(*few(case, 3)).equal_error_rate()
    assert streamed == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("rate", [1e-5, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_threshold_accepts_as_many_genuine_pairs_as_the_rate_allows(case, rate):
    pairs = all_pairs(*few(case, 4))
    num_genuine = sum(same for _, same in pairs)
    num_impostor = len(pairs) - num_genuine
    allowed = [
        threshold
        for threshold in [math.inf, *{s for s, _ in pairs}]
        if counted(pairs, threshold)[1] <= rate * num_impostor
    ]
    genuine, impostor = counted(pairs, min(allowed))
    point = roc_of_pairs(*as_tensors(pairs)).at_false_accept_rate(rate)
    assert point.threshold == min(allowed)
    assert (point.true_accept_rate, point.false_accept_rate) == (
        genuine / num_genuine,
        impostor / num_impostor,
    )
    assert point.true_accept_interval == wilson_interval(genuine, num_genuine)
    assert point.false_accept_interval == wilson_interval(impostor, num_impostor)


def weighed_pairs(embeddings, labels, ids, groups, weights):
    """Similarities, kinds and weights of all pairs where groups of classes are drawn so often, in loops."""
    similarities, kinds, times = [], [], []
    for i, j in itertools.combinations(range(len(labels)), 2):
        if ids is not None and ids[i] == ids[j]:
            continue
        first, second = weights[groups[i]], weights[groups[j]]
        same = bool(labels[i] == labels[j])
        similarities.append(float(embeddings[i] @ embeddings[j]))
        kinds.append(same)
        times.append(first if groups[i] == groups[j] else first * second)
    return np.array(similarities), np.array(kinds), np.array(times)


# 190 classes are dealt into 100 groups.
@pytest.mark.parametrize(("num_classes", "per_class"), [(7, 5), (190, 1.3)])
@pytest.mark.parametrize("with_ids", [False, True], ids=["all", "ids"])
def test_resampled_rates_are_those_of_the_loop_over_weighed_pairs(num_classes, per_class, with_ids):
    embeddings, labels = people(num_classes, 3, seed=0) if per_class > 2 else people(num_classes, 1, seed=0)
    if per_class < 2:  # some have two
        embeddings, labels = torch.cat([embeddings, -embeddings[:40]]), torch.cat([labels, labels[:40]])
    ids = torch.arange(len(labels)) // 2 if with_ids else None
    curve = roc_of_all_pairs(embeddings, labels, ids=ids, resamples=3)
    groups = class_groups(labels).tolist()
    assert len(set(groups)) == min(num_classes, MAX_GROUPS)
    drawn = torch.cat(list(class_weights(len(set(groups)), 3, seed=0))).numpy()
    for number, weights in enumerate(drawn):
        similarities, same, times = weighed_pairs(embeddings, labels.tolist(), ids, groups, weights)
        for place in range(0, len(curve.resamples.levels), 5):
            is_near = similarities >= float(curve.resamples.levels[place])
            for kind, rates in (
                (same, curve.resamples.true_accept_rates),
                (~same, curve.resamples.false_accept_rates),
            ):
                expected = max((times * kind * is_near).sum(), 0) / (times * kind).sum()
                assert float(rates[number, place]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("num_classes", "per_class"), [(12, 6), (100, 3), (220, 2)])
@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_the_interval_is_that_of_the_plain_loop_that_draws_classes(num_classes, per_class, rate):
    embeddings, labels = people(num_classes, per_class, seed=1)
    point = roc_of_all_pairs(embeddings, labels, resamples=300).at_false_accept_rate(rate)
    first, second = np.triu_indices(len(labels), 1)
    similarities = (embeddings @ embeddings.T).numpy()[first, second]
    order = np.argsort(-similarities, kind="stable")
    similarities, first, second = (
        similarities[order],
        labels.numpy()[first[order]],
        labels.numpy()[second[order]],
    )
    same, accepted, falsely = first == second, [], []
    for weights in torch.cat(list(class_weights(num_classes, 300, seed=0))).numpy():
        genuine = np.cumsum(weights[first] * same)
        impostor = np.cumsum(weights[first] * weights[second] * ~same)
        allowed = np.searchsorted(impostor, rate * impostor[-1], side="right") - 1
        accepted.append(genuine[allowed] / genuine[-1])
        falsely.append(impostor[similarities >= point.threshold][-1] / impostor[-1])
    # 220 classes are dealt into groups, and so drawn otherwise: the quantiles of 300 draws are 6 % apart.
    within = 0.2 if num_classes > MAX_GROUPS else 0.06
    for actual, values in ((point.true_accept_interval, accepted), (point.false_accept_interval, falsely)):
        low, high = np.quantile(values, [0.025, 0.975])
        assert actual.low == pytest.approx(low, abs=within * (high - low))
        assert actual.high == pytest.approx(high, abs=within * (high - low))


@pytest.mark.parametrize(("num_classes", "per_class"), [(12, 6), (40, 6)])
def test_the_interval_of_the_equal_error_rate_is_that_of_the_plain_loop(num_classes, per_class):
    embeddings, labels = people(num_classes, per_class, seed=2)
    interval = roc_of_all_pairs(embeddings, labels, resamples=200).equal_error_interval()
    first, second = np.triu_indices(len(labels), 1)
    similarities = (embeddings @ embeddings.T).numpy()[first, second]
    order = np.argsort(-similarities, kind="stable")
    first, second = labels.numpy()[first[order]], labels.numpy()[second[order]]
    same, rates = first == second, []
    for weights in torch.cat(list(class_weights(num_classes, 200, seed=0))).numpy():
        accepted = np.cumsum(weights[first] * weights[second] * ~same)
        refused = 1 - np.cumsum(weights[first] * same) / (weights[first] * same).sum()
        rates.append((accepted / accepted[-1])[np.argmax(accepted / accepted[-1] >= refused)])
    low, high = np.quantile(rates, [0.025, 0.975])
    assert interval.low == pytest.approx(low, abs=0.06 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.06 * (high - low))


def test_an_equal_error_rate_beyond_the_rates_prepared_for_has_no_interval():
    curve = roc_of_all_pairs(*balanced(0), false_accept_rates=(0.01,))
    assert curve.equal_error_rate() > 0.01
    with pytest.raises(ValueError, match="Pass a larger one in false_accept_rates"):
        curve.equal_error_interval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_classes", "per_class", "most_of_pairs"), [(60, 8, 60), (300, 4, 80)], ids=["classes", "groups"]
)
def test_95_percent_intervals_hold_the_population_s_number_at_least_90_times_of_100(
    num_classes, per_class, most_of_pairs
):
    """Wilson's, which take pairs as independent, hold it much less often."""
    rate, covered = 0.01, {"classes": 0, "pairs": 0}
    population = [roc_of_all_pairs(*people(1000, 4, seed=1000 + n)) for n in range(4)]
    truth = sum(curve.at_false_accept_rate(rate).true_accept_rate for curve in population) / len(population)
    for seed in range(100):
        curve = roc_of_all_pairs(*people(num_classes, per_class, seed=seed), resamples=300)
        point = curve.at_false_accept_rate(rate)
        num_genuine = int(curve.genuine[-1])
        independent = wilson_interval(round(point.true_accept_rate * num_genuine), num_genuine)
        for name, actual in (("classes", point.true_accept_interval), ("pairs", independent)):
            covered[name] += actual.low <= truth <= actual.high
    assert covered["classes"] >= 90
    assert covered["pairs"] <= most_of_pairs


def test_rates_beyond_those_prepared_for_are_refused_with_what_to_name():
    curve = roc_of_all_pairs(*balanced(0), false_accept_rates=(0.01,))
    with pytest.raises(ValueError, match="Pass it in false_accept_rates"):
        curve.at_false_accept_rate(0.02)


def test_ten_of_a_thousand_impostors_are_allowed_at_one_in_a_hundred():
    similarities = torch.cat([torch.tensor([0.95]), torch.linspace(1, 0, 1000)])
    same = torch.arange(1001) == 0
    assert roc_of_pairs(similarities, same).at_false_accept_rate(0.01).false_accept_rate == 0.01


def plain_folds(similarities, same, folds):
    """LFW's protocol in loops."""
    rows = list(zip((2 - 2 * s for s in similarities), same, folds, strict=True))

    def right(chosen, threshold):
        return sum((d < threshold) == kind for d, kind, _ in chosen)

    accuracies = []
    for fold in sorted(set(folds)):
        others = [row for row in rows if row[2] != fold]
        mine = [row for row in rows if row[2] == fold]
        best = max(range(400), key=lambda step, others=others: (right(others, step / 100), -step))
        accuracies.append(right(mine, best / 100) / len(mine))
    return accuracies


@pytest.mark.parametrize("given", [False, True], ids=["in order", "folds given"])
@pytest.mark.parametrize("seed", range(3))
def test_ten_fold_accuracy_is_that_of_the_plain_loop(seed, given):
    generator = torch.Generator().manual_seed(seed)
    same = torch.rand(103, generator=generator) < 0.5
    similarities = (same * 0.3 + torch.randn(103, generator=generator, dtype=torch.float64) * 0.3).clamp(
        -1, 1
    )
    parts = [len(part) for part in torch.arange(103).tensor_split(10)]
    folds = [number for number, size in enumerate(parts) for _ in range(size)]
    if given:
        folds = torch.randint(3, 9, (103,), generator=generator).tolist()
    accuracy = k_fold_accuracy(similarities, same, folds=torch.tensor(folds) if given else None)
    expected = plain_folds(similarities.tolist(), same.tolist(), folds)
    assert accuracy.folds == pytest.approx(expected)
    assert accuracy.mean == pytest.approx(sum(expected) / len(expected))
    variance = sum((value - accuracy.mean) ** 2 for value in expected) / len(expected)
    assert accuracy.deviation == pytest.approx(variance**0.5)


ALL_ONE = torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roc_of_pairs(torch.ones(3), torch.ones(2).bool()), "same length"),
        (lambda: roc_of_pairs(torch.ones(3), torch.ones(3).bool()), "0 impostor"),
        (lambda: roc_of_all_pairs(torch.eye(3), torch.arange(3)), "0 genuine"),
        (lambda: roc_of_all_pairs(torch.eye(3), torch.arange(2)), "same length"),
        (lambda: roc_of_all_pairs(torch.eye(3), ALL_ONE, bins=100), "power of two"),
        (lambda: roc_of_all_pairs(torch.eye(3) * 2, ALL_ONE), "length 1; got length 2 in row 0 and 3"),
        (lambda: roc_of_all_pairs(torch.eye(3)[0], ALL_ONE), r"must be \(N, D\)"),
        (lambda: roc_of_all_pairs(torch.eye(3), np.zeros(3)), r"got numpy.ndarray. Pass torch.as_tensor"),
        (lambda: roc_of_all_pairs(torch.eye(3), ALL_ONE, false_accept_rates=(1,)), "must be in"),
        (lambda: roc_of_all_pairs(*balanced(0)).at_false_accept_rate(0), "false-accept"),
        (lambda: roc_of_pairs(torch.tensor([0.1, torch.nan]), torch.tensor([True, False])), "finite"),
        (lambda: roc_of_all_pairs(torch.eye(4) * torch.inf, torch.arange(4) // 2), "finite"),
        (lambda: k_fold_accuracy(torch.full((5,), torch.nan), torch.ones(5).bool(), num_folds=2), "finite"),
        (lambda: k_fold_accuracy(torch.ones(5), torch.ones(5).bool()), "num_folds"),
        (
            lambda: k_fold_accuracy(torch.ones(5), torch.ones(5).bool(), folds=torch.zeros(5).long()),
            "at least two different values",
        ),
    ],
)
def test_what_cannot_be_verified_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

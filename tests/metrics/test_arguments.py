"""What has no meaning is refused by every public argument of the room, with its name and what to pass."""

import math

import numpy as np
import pytest
import torch

from dml.metrics.clustering import adjusted_mutual_information, normalized_mutual_information, pairwise_f1
from dml.metrics.fewshot import few_shot
from dml.metrics.intervals import (
    bootstrap_intervals,
    class_weights,
    compare_paired,
    percentile_interval,
    wilson_interval,
)
from dml.metrics.pair_counts import count_pairs, levels_for
from dml.metrics.parity import confusezius, open_metric_learning, pytorch_metric_learning
from dml.metrics.ranking import Items, Ranking
from dml.metrics.retrieval import joined, query_metrics, retrieval_metrics
from dml.metrics.verification import k_fold_accuracy, roc_of_all_pairs, roc_of_counts, roc_of_pairs
from tests.metrics.cases import people

X, Y = people(6, 5, seed=0)
ITEMS = Items(X, Y)
VALUES = torch.linspace(0, 1, 30)
SAME = torch.arange(30) % 2 == 0
LEVELS = levels_for(ITEMS, (0.1,))
COUNTS = count_pairs(ITEMS, LEVELS)
CURVE = roc_of_all_pairs(X, Y, resamples=5)

RANKS = {
    "retrieval_metrics recall_at": lambda v: retrieval_metrics(X, Y, recall_at=v),
    "query_metrics recall_at": lambda v: query_metrics(ITEMS, recall_at=v),
    "query_metrics precision_at": lambda v: query_metrics(ITEMS, precision_at=v),
    "query_metrics map_at": lambda v: query_metrics(ITEMS, map_at=v),
    "confusezius recall_at": lambda v: confusezius(X, Y, recall_at=v),
    "open_metric_learning top_k": lambda v: open_metric_learning(ITEMS, top_k=v),
}
COUNTED = {
    "few_shot ways": lambda v: few_shot(X, Y, ways=v, episodes=2),
    "few_shot shots": lambda v: few_shot(X, Y, ways=3, shots=v, episodes=2),
    "few_shot queries_per_class": lambda v: few_shot(X, Y, ways=3, queries_per_class=v, episodes=2),
    "few_shot episodes": lambda v: few_shot(X, Y, ways=3, episodes=v),
    "intervals resamples": lambda v: few_shot(X, Y, ways=3, episodes=2).intervals(resamples=v),
    "wilson_interval trials": lambda v: wilson_interval(0, v),
    "bootstrap_intervals resamples": lambda v: bootstrap_intervals({"x": VALUES}, Y, resamples=v),
    "compare_paired resamples": lambda v: compare_paired(VALUES, VALUES, Y, resamples=v),
    "class_weights num_classes": lambda v: list(class_weights(v, 3, seed=0)),
    "class_weights resamples": lambda v: list(class_weights(3, v, seed=0)),
    "pytorch_metric_learning k": lambda v: pytorch_metric_learning(ITEMS, k=v),
    "blocks depth": lambda v: list(Ranking(ITEMS).blocks(v)),
    "query_metrics recall_depth": lambda v: query_metrics(ITEMS, recall_depth=v),
    "query_metrics block_elements": lambda v: query_metrics(ITEMS, block_elements=v),
    "ami most_terms": lambda v: adjusted_mutual_information(Y, Y % 5, most_terms=v),
    "ami terms_at_a_time": lambda v: adjusted_mutual_information(Y, Y % 5, terms_at_a_time=v),
    "roc_of_all_pairs bins": lambda v: roc_of_all_pairs(X, Y, bins=v, resamples=5),
    "levels_for bins": lambda v: levels_for(ITEMS, (0.1,), bins=v),
    "roc_of_all_pairs resamples": lambda v: roc_of_all_pairs(X, Y, resamples=v),
    "roc_of_counts resamples": lambda v: roc_of_counts(COUNTS, LEVELS, ITEMS, resamples=v),
    "k_fold_accuracy num_folds": lambda v: k_fold_accuracy(VALUES, SAME, num_folds=v),
}
SEEDS = {
    "few_shot": lambda v: few_shot(X, Y, ways=3, episodes=2, seed=v),
    "bootstrap_intervals": lambda v: bootstrap_intervals({"x": VALUES}, Y, resamples=5, seed=v),
    "compare_paired": lambda v: compare_paired(VALUES, VALUES, Y, resamples=5, seed=v),
    "class_weights": lambda v: list(class_weights(3, 2, seed=v)),
}
SHARES = {
    "wilson_interval confidence": lambda v: wilson_interval(1, 2, confidence=v),
    "bootstrap_intervals confidence": lambda v: bootstrap_intervals({"x": VALUES}, Y, confidence=v),
    "compare_paired confidence": lambda v: compare_paired(VALUES, VALUES, Y, resamples=5, confidence=v),
    "percentile_interval confidence": lambda v: percentile_interval(VALUES, confidence=v),
    "at_false_accept_rate rate": lambda v: CURVE.at_false_accept_rate(v),
    "roc_of_all_pairs false_accept_rates": lambda v: roc_of_all_pairs(X, Y, false_accept_rates=(0.1, v)),
    "levels_for false_accept_rates": lambda v: levels_for(ITEMS, [v]),
}
COLUMNS = {
    "roc_of_pairs similarities": (lambda v: roc_of_pairs(v, SAME), VALUES),
    "roc_of_pairs same": (lambda v: roc_of_pairs(VALUES, v), SAME),
    "k_fold_accuracy similarities": (lambda v: k_fold_accuracy(v, SAME), VALUES),
    "k_fold_accuracy same": (lambda v: k_fold_accuracy(VALUES, v), SAME),
    "k_fold_accuracy folds": (lambda v: k_fold_accuracy(VALUES, SAME, folds=v), Y),
    "bootstrap_intervals values": (lambda v: bootstrap_intervals({"x": v}, Y, resamples=5), VALUES),
    "bootstrap_intervals classes": (lambda v: bootstrap_intervals({"x": VALUES}, v, resamples=5), Y),
    "compare_paired first": (lambda v: compare_paired(v, VALUES, Y, resamples=5), VALUES),
    "compare_paired second": (lambda v: compare_paired(VALUES, v, Y, resamples=5), VALUES),
    "compare_paired classes": (lambda v: compare_paired(VALUES, VALUES, v, resamples=5), Y),
    "nmi labels": (lambda v: normalized_mutual_information(v, Y), Y),
    "nmi clusters": (lambda v: normalized_mutual_information(Y, v), Y),
    "ami labels": (lambda v: adjusted_mutual_information(v, Y), Y),
    "pairwise_f1 clusters": (lambda v: pairwise_f1(Y, v), Y),
    "few_shot labels": (lambda v: few_shot(X, v, ways=3, episodes=2), Y),
    "few_shot within": (lambda v: few_shot(X, Y, ways=3, episodes=2, within=v), Y * 0),
    "Items labels": (lambda v: Items(X, v), Y),
    "Items ids": (lambda v: Items(X, Y, ids=v), Y),
    "Items groups": (lambda v: Items(X, Y, groups=v), Y),
    "roc_of_all_pairs ids": (lambda v: roc_of_all_pairs(X, Y, ids=v, resamples=5), torch.arange(30)),
    "QueryMetrics.select mask": (lambda v: query_metrics(ITEMS).select(v), SAME),
}


def each(table):
    return pytest.mark.parametrize("name", table)


@each(RANKS)
@pytest.mark.parametrize(
    "value", [5, (1.5,), (0,), (-3,), (True,), (1, None), "15", 2.0, {1: 2}, torch.ones(2)]
)
def test_what_are_no_ranks_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name.split()[1]} must be"):
        RANKS[name](value)


@each(RANKS)
@pytest.mark.parametrize(
    "value", [(1, 5), [1, 5], range(1, 6, 4), np.array([1, 5]), (np.int64(1), np.int32(5))]
)
def test_ranks_of_any_sequence_are_taken(name, value):
    assert str(RANKS[name](value)) == str(RANKS[name]((1, 5)))


def test_one_rank_alone_is_refused_with_how_to_pass_it():
    with pytest.raises(
        ValueError, match=r"recall_at must be one K or more; got 5\. Pass a tuple: recall_at=\(1,\)"
    ):
        retrieval_metrics(X, Y, recall_at=5)


@each(COUNTED)
@pytest.mark.parametrize("value", [0, -1, 2.0, 1.5, math.nan, True, "3", [2], torch.tensor(2)])
def test_what_is_no_count_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name.split()[1]} must be a whole number"):
        COUNTED[name](value)


@each(SEEDS)
@pytest.mark.parametrize("value", [1.5, True, None, "1"])
def test_what_is_no_seed_is_refused(name, value):
    with pytest.raises(ValueError, match="seed must be a whole number"):
        SEEDS[name](value)


@each(SHARES)
@pytest.mark.parametrize("value", [0, 1, -0.1, 95, math.nan, math.inf, True, "0.5", None, torch.tensor(0.5)])
def test_what_is_no_share_is_refused(name, value):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        SHARES[name](value)


@pytest.mark.parametrize("value", [0.1, (), "0.1", torch.tensor([0.1])])
def test_rates_that_are_no_sequence_are_refused(value):
    with pytest.raises(ValueError, match="false_accept_rates must be one or more in"):
        roc_of_all_pairs(X, Y, false_accept_rates=value)


@each(COLUMNS)
def test_a_column_of_another_shape_or_length_is_refused(name):
    call, column = COLUMNS[name]
    call(column)
    argument = name.split()[1]
    for bad, message in (
        (column[:, None], rf"{'x' if argument == 'values' else argument} must be \(N,\)"),
        (column[0], r"must be \(N,\)"),
        (column.tolist(), "must be a torch tensor; got list"),
        (column.numpy(), r"must be a torch tensor; got numpy\.ndarray"),
        (column[:-1], "same length|same queries|one value"),
    ):
        with pytest.raises(ValueError, match=message):
            call(bad)


@each(COLUMNS)
def test_a_column_of_another_type_is_refused(name):
    call, column = COLUMNS[name]
    wrong = [column.to(torch.complex64)]
    if column.is_floating_point():
        wrong += [torch.where(column > 0.9, math.nan, column), torch.where(column > 0.9, math.inf, column)]
    else:
        wrong += [column.float()]
    for bad in wrong:
        with pytest.raises(ValueError, match=r"must be \(N,\)|must be finite"):
            call(bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: query_metrics(ITEMS, map_at=(5,), map_denominators="relevant"), "must be some of relevant"),
        (
            lambda: query_metrics(ITEMS, map_at=(5,), map_denominators=(1,)),
            "Each of map_denominators must be",
        ),
        (
            lambda: open_metric_learning(ITEMS, denominator="relevant"),
            "denominator must be one of attainable",
        ),
        (lambda: pytorch_metric_learning(ITEMS, k="all"), "k must be a whole number"),
        (lambda: normalized_mutual_information(Y, Y, average=None), "average must be one of arithmetic"),
        (lambda: compare_paired(VALUES, VALUES, Y, margin=math.nan), "margin must be a finite number"),
        (lambda: compare_paired(VALUES, VALUES, Y, margin="0"), "margin must be a finite number"),
        (lambda: wilson_interval(True, 2), "successes must be a whole number, 0 or more"),
        (lambda: wilson_interval(-1, 2), "successes must be a whole number, 0 or more"),
        (lambda: bootstrap_intervals([VALUES], Y), "values must contain at least one metric; got list"),
        (lambda: joined([], []), "same length, one or more"),
        (lambda: percentile_interval(VALUES[:0]), "at least one resample; got none"),
        (lambda: k_fold_accuracy(VALUES * 4, SAME), r"cosines, in \[-1, 1\]; got 1\."),
        (lambda: confusezius(X[:0], Y[:0]), "got 0 queries and 0 gallery items"),
        (lambda: pytorch_metric_learning(Items(X[:0], Y[:0])), "got 0 queries"),
        (lambda: open_metric_learning(ITEMS, Items(X[:0], Y[:0])), "got 30 queries and 0 gallery items"),
        (lambda: count_pairs(ITEMS, LEVELS, slice(0, 9, 2)), "rows must be consecutive"),
    ],
)
def test_other_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

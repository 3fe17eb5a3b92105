"""What holds of any embedding and any labels: bounds, invariances, one metric against another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.metrics.clustering import adjusted_mutual_information, normalized_mutual_information, pairwise_f1
from dml.metrics.intervals import bootstrap_intervals, compare_paired, wilson_interval
from dml.metrics.ranking import Items
from dml.metrics.retrieval import query_metrics, retrieval_metrics
from dml.metrics.verification import roc_of_all_pairs, roc_of_pairs
from tests.metrics.cases import on_a_grid, unit

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@st.composite
def labelled(draw, least=2):
    """Unit rows, some of them tied, and labels, of which some occur once."""
    labels = draw(st.lists(st.integers(-3, 5), min_size=least, max_size=24))
    make = draw(st.sampled_from([unit, on_a_grid]))
    return make(len(labels), 8, draw(st.integers(0, 99))), torch.tensor(labels)


labelings = st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 3)), min_size=1, max_size=40)


@few
@given(labelled())
def test_retrieval_metrics_are_shares_and_recall_grows_with_k(case):
    metrics = retrieval_metrics(*case, recall_at=(1, 2, 5, 100))
    values = list(metrics.as_dict().values())
    assert all(0 <= value <= 1 for value in values)
    assert values[:4] == sorted(values[:4])
    assert metrics.map_at_r <= metrics.r_precision + 1e-12
    assert metrics.recall_at[100] == (1.0 if metrics.num_queries else 0.0)


@few
@given(labelled(), st.integers(0, 99))
def test_no_metric_depends_on_the_names_of_classes_or_on_a_rotation(case, seed):
    embeddings, labels = case
    embeddings = unit(len(labels), 8, seed)  # without ties, which rounding may break
    metrics = retrieval_metrics(embeddings, labels, recall_at=(1, 3))
    assert retrieval_metrics(embeddings, -7 * labels, recall_at=(1, 3)) == metrics
    rotation = torch.linalg.qr(unit(8, 8, seed))[0]
    assert retrieval_metrics(embeddings @ rotation, labels, recall_at=(1, 3)) == metrics


@few
@given(labelled())
def test_a_query_with_a_copy_of_its_class_alone_finds_it(case):
    embeddings, labels = case
    unique = torch.arange(len(labels))
    metrics = query_metrics(Items(embeddings, unique), Items(embeddings, unique), recall_at=(1,))
    distinct = len(torch.unique(embeddings, dim=0)) == len(embeddings)
    assert not distinct or metrics.means()["recall_at_1"] == 1.0


@few
@given(labelled(least=3))
def test_streamed_pairs_have_the_area_of_pairs_one_by_one(case):
    embeddings, labels = case
    first, second = torch.triu_indices(len(labels), len(labels), 1)
    same = labels[first] == labels[second]
    if not same.any() or same.all():
        with pytest.raises(ValueError, match=r"genuine and impostor pairs|pairs of the same class"):
            roc_of_all_pairs(embeddings, labels, bins=2, resamples=2)
        return
    roc = roc_of_all_pairs(embeddings, labels, bins=4096, resamples=2)
    exact = roc_of_pairs((embeddings[first] * embeddings[second]).sum(1), same)
    assert roc.area() == pytest.approx(exact.area(), abs=0.02)
    assert 0 <= roc.equal_error_rate() <= 1


@few
@given(labelings)
def test_clusterings_are_compared_alike_from_both_sides(pairs):
    labels, clusters = torch.tensor(pairs).T
    for metric in (normalized_mutual_information, adjusted_mutual_information, pairwise_f1):
        value = metric(labels, clusters)
        assert value == pytest.approx(metric(clusters, labels), abs=1e-9)
        assert value == pytest.approx(metric(-3 * labels, clusters + 9), abs=1e-9)
        assert value <= 1 + 1e-9
        assert metric(labels, labels) == pytest.approx(1, abs=1e-9)


@few
@given(labelings.filter(lambda pairs: len({c for c, _ in pairs}) > 1), st.integers(0, 9))
def test_an_interval_lies_within_the_values_and_holds_what_no_resample_changes(pairs, seed):
    classes, column = torch.tensor(pairs).T
    values = {"x": column.double(), "constant": torch.full((len(column),), 0.25, dtype=torch.float64)}
    interval = bootstrap_intervals(values, classes, resamples=20, seed=seed)
    assert float(column.min()) <= interval["x"].low <= interval["x"].high <= float(column.max())
    assert (interval["constant"].low, interval["constant"].high) == (0.25, 0.25)


@few
@given(labelings.filter(lambda pairs: len({c for c, _ in pairs}) > 1))
def test_a_gain_seen_from_the_other_model_is_a_loss_of_the_same_size(pairs):
    classes, column = torch.tensor(pairs).T
    other = column.flip(0)
    one = compare_paired(column, other, classes, resamples=20)
    two = compare_paired(other, column, classes, resamples=20)
    assert one.gain == -two.gain
    assert (one.interval.low, one.interval.high) == pytest.approx((-two.interval.high, -two.interval.low))
    assert 0 < one.p_value <= 1


@few
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share_and_mirrors(counts):
    successes, trials = counts
    interval = wilson_interval(successes, trials)
    mirrored = wilson_interval(trials - successes, trials)
    assert 0 <= interval.low <= successes / trials <= interval.high <= 1
    assert (interval.low, interval.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))

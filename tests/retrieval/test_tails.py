"""Thresholds keep the false-positive rate they promise, on probes that took no part, or promise nothing."""

import numpy as np
import pytest
from scipy.stats import genpareto

from dml.errors import InvalidData, InvalidSetting
from dml.retrieval.impostors import ImpostorPool, impostor_scores, sample_probes
from dml.retrieval.tails import (
    fit_pareto,
    fit_tail,
    held_out_fpir,
    held_out_tails,
    identity_folds,
    pair_rate,
)


def people(num, per_identity, *, dim=16, noise=0.4, seed=0):
    """Unit vectors of identities, and whose they are."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num), per_identity)
    vectors = random.normal(size=(num, dim))[labels] + noise * random.normal(size=(len(labels), dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def searched(vectors, labels, probes, **options):
    return impostor_scores(vectors[probes], labels[probes], vectors.__getitem__, labels, **options)


def pooled(searches, folds=None, **options):
    pool = ImpostorPool(np.empty(0, dtype=np.int64) if folds is None else folds, **options)
    for scores in searches:
        pool.add(scores)
    return pool


@pytest.mark.parametrize("shape", [-0.4, -0.15, 0.0, 0.15])
def test_the_fit_is_as_near_to_the_truth_as_scipys_maximum_likelihood(shape):
    errors = []
    for seed in range(10):
        excesses = genpareto.rvs(shape, scale=0.05, size=1000, random_state=seed)
        scale, found = fit_pareto(excesses)
        theirs, _, their_scale = genpareto.fit(excesses, floc=0)
        errors.append(
            [(found - shape) ** 2, (theirs - shape) ** 2, (scale - 0.05) ** 2, (their_scale - 0.05) ** 2]
        )
    ours, maximum_likelihood, of_scale, of_their_scale = np.sqrt(np.mean(errors, axis=0))
    assert ours < max(2 * maximum_likelihood, 0.05)
    assert of_scale < max(2 * of_their_scale, 0.004)


def test_the_tail_of_cosines_has_scipys_quantiles():
    vectors, labels = people(300, 4)
    tail = fit_tail(searched(vectors, labels, np.arange(len(labels))).pairs())
    for rate in (tail.share / 2, tail.share / 20, tail.share / 100):
        expected = tail.location + genpareto.isf(rate / tail.share, tail.shape, scale=tail.scale)
        assert tail.pareto_similarity_at(rate) == pytest.approx(expected)
    assert tail.similarity_at(rate) == tail.pareto_similarity_at(rate)  # of 5 pairs


def test_twins_raise_the_threshold_above_the_distribution_of_all_others():
    vectors, _ = people(2_000, 1)
    twins = vectors[:40] + 0.1 * np.random.default_rng(1).normal(size=(40, 16))
    twins /= np.linalg.norm(twins, axis=1, keepdims=True)
    vectors = np.concatenate([vectors, twins.astype(np.float32)])
    scores = searched(vectors, np.arange(2_040), np.arange(2_040))
    folds = identity_folds(2_040)
    pool = pooled([scores], folds)
    rate = pair_rate(2_040, 0.02)
    expected = float(np.sort(scores.similarities)[-round(rate * scores.num_pairs)])
    tail = fit_tail(pool.pairs())
    assert tail.similarity_at(rate) == pytest.approx(expected, abs=0.01)
    assert tail.pareto_similarity_at(rate) < expected - 0.05
    limits = [tail.threshold(2_040, 0.02) for tail in held_out_tails(pool)]
    check = held_out_fpir([(scores.probe_maxima(), limits)], folds)
    assert check.low <= 0.02


def test_every_pair_is_compared_once_with_the_best_image_of_the_identity():
    vectors, labels = people(12, 3)
    probes = np.arange(0, 36, 2)
    expected = {}
    for probe in probes:
        for identity in set(labels.tolist()) - {labels[probe]}:
            expected[probe, identity] = max(float(vectors[probe] @ v) for v in vectors[labels == identity])
    found = searched(vectors, labels, probes)
    assert found.num_pairs == len(expected) == len(found.similarities)
    np.testing.assert_allclose(np.sort(found.similarities), sorted(expected.values()), rtol=1e-5)
    best = [max(value for (row, _), value in expected.items() if row == probe) for probe in probes]
    np.testing.assert_allclose(found.maxima, best, rtol=1e-5)


def test_by_image_every_image_of_another_identity_is_a_pair():
    vectors, labels = people(12, 3)
    found = searched(vectors, labels, np.arange(36), by_image=True)
    similarities = vectors @ vectors.T
    np.testing.assert_allclose(
        np.sort(found.similarities), np.sort(similarities[labels[:, None] != labels]), rtol=1e-5
    )
    assert found.num_pairs == len(found.similarities) == 36 * 33


def test_only_the_most_similar_pairs_are_kept_of_many_and_none_of_them_is_missed():
    vectors, labels = people(200, 3)
    everything = searched(vectors, labels, np.arange(600))
    some = searched(vectors, labels, np.arange(600), max_kept=5000)
    assert 3000 < len(some.similarities) < 8000
    np.testing.assert_array_equal(
        np.sort(some.similarities), np.sort(everything.similarities)[-len(some.similarities) :]
    )
    np.testing.assert_array_equal(some.maxima, everything.maxima)
    assert some.num_pairs == everything.num_pairs == 600 * 199


def test_the_threshold_is_that_pair_quantile_where_there_are_many_pairs():
    vectors, labels = people(300, 4)
    scores = searched(vectors, labels, np.arange(1200))
    tail = fit_tail(scores.pairs())
    for rate in (0.9, 0.3, 0.02, 0.003):
        assert tail.similarity_at(rate) == pytest.approx(
            np.quantile(scores.similarities, 1 - rate), abs=0.003
        )


def test_a_short_tail_has_nearly_the_same_thresholds():
    vectors, labels = people(300, 4)
    pairs = searched(vectors, labels, np.arange(1200)).pairs()
    usual, short = fit_tail(pairs), fit_tail(pairs, num_largest=50, num_quantiles=24)
    assert (len(short.largest), len(short.quantiles)) == (50, 23)  # both parts have the location
    for rate in (0.1, 0.02, 0.003, 1e-3, 1e-4, 3e-5, 1e-6):
        assert short.similarity_at(rate) == pytest.approx(usual.similarity_at(rate), abs=0.01)


@pytest.mark.parametrize(("num_identities", "fpir"), [(1, 0.01), (100, 0.01), (50_000, 0.01), (10, 0.3)])
def test_independent_pairs_at_the_pair_rate_give_the_fpir(num_identities, fpir):
    assert 1 - (1 - pair_rate(num_identities, fpir)) ** num_identities == pytest.approx(fpir)


def test_held_out_identities_meet_the_fpir_that_was_asked_for():
    vectors, labels = people(600, 2)
    scores = searched(vectors, labels, np.arange(1200))
    folds = identity_folds(600)
    tails = held_out_tails(pooled([scores], folds))
    limits = [tail.threshold(600, 0.05) for tail in tails]
    check = held_out_fpir([(scores.probe_maxima(), limits)], folds)
    assert check.low <= 0.05 <= check.high < 0.08
    assert (check.identities, check.enrolled, check.probes) == (600, 600, 1200)


def test_a_threshold_beyond_what_was_seen_is_refused_with_what_it_needs():
    vectors, labels = people(60, 3)
    tail = fit_tail(searched(vectors, labels, np.arange(180)).pairs())
    assert tail.supported_threshold(60, 0.3, "index faces") < tail.threshold(60, 0.001)
    with pytest.raises(
        InvalidSetting, match=r"faces: an FPIR of 0.001 among 60 .* needs 10 pairs .* it has \d, of 60"
    ):
        tail.supported_threshold(60, 0.001, "index faces")


@pytest.mark.parametrize(
    ("num_identities", "fpir", "wanted"), [(60, 1e-9, 10_000_000_000), (1, 1e-9, 141_422)]
)
def test_a_rate_that_is_refused_is_not_promised_to_fewer_identities_than_it_takes(
    num_identities, fpir, wanted
):
    vectors, labels = people(60, 3)
    tail = fit_tail(searched(vectors, labels, np.arange(180)).pairs())
    with pytest.raises(InvalidSetting, match=f"of 60 identities. Calibrate with some {wanted},"):
        tail.supported_threshold(num_identities, fpir, "index faces")


def test_pairs_of_identities_are_counted_and_not_pairs_of_their_images():
    vectors, labels = people(40, 1)
    again = np.repeat(vectors, 30, axis=0), np.repeat(labels, 30)
    once, often = (
        fit_tail(searched(*case, np.arange(len(case[1]))).pairs()) for case in ((vectors, labels), again)
    )
    assert often.pairs == 30 * once.pairs
    assert often.num_beyond(0.5) == once.num_beyond(0.5) > 0


def test_a_fold_takes_part_neither_as_probe_nor_as_enrolled():
    vectors, labels = people(30, 2)
    folds = np.arange(30) // 10
    pairs = pooled([searched(vectors, labels, np.arange(60))], folds).pairs(without=0)
    assert set(pairs.pair_probes) == set(pairs.pair_enrolled) == set(range(10, 30))
    assert pairs.num_pairs == len(pairs.similarities) == 40 * 19
    assert (pairs.num_probes, pairs.num_identities) == (40, 20)


def test_searches_added_one_after_another_have_the_tail_of_all_their_pairs():
    vectors, labels = people(200, 3)
    searches = [searched(vectors, labels, np.arange(start, start + 60)) for start in range(0, 600, 60)]
    once = searched(vectors, labels, np.arange(600))
    assert fit_tail(pooled(searches).pairs()) == fit_tail(once.pairs())


def test_a_pool_keeps_the_most_similar_pairs_and_forgets_the_others():
    vectors, labels = people(200, 3)
    searches = [searched(vectors, labels, np.arange(start, start + 60)) for start in range(0, 600, 60)]
    pairs, every = pooled(searches, max_kept=10_000).pairs(), pooled(searches).pairs()
    kept = len(pairs.similarities)
    assert 10_000 <= kept <= 20_000 < len(every.similarities)
    np.testing.assert_array_equal(pairs.similarities, every.similarities[:kept])
    assert (pairs.num_pairs, pairs.num_probes) == (every.num_pairs, 600)
    few, all_ = fit_tail(pairs), fit_tail(every)
    assert few.largest == all_.largest
    assert few.pareto_similarity_at(1e-4) == all_.pareto_similarity_at(1e-4)


def test_searches_that_keep_different_shares_are_pooled_from_the_highest_floor_on():
    vectors, labels = people(200, 3)
    first, second = np.arange(300), np.arange(300, 600)
    some = searched(vectors, labels, first, max_kept=500)
    every = searched(vectors, labels, second)
    for order in ([some, every], [every, some]):
        pairs = pooled(order).pairs()
        assert pairs.similarities[-1] >= some.floor
        assert len(pairs.similarities) == len(some.similarities) + (every.similarities >= some.floor).sum()


def test_probes_are_one_of_each_identity_before_a_second_of_any():
    labels = np.repeat(np.arange(50), np.arange(1, 51))
    assert sorted(labels[sample_probes(labels, 50)]) == list(range(50))
    assert np.bincount(labels[sample_probes(labels, 99)]).tolist() == [1] + [2] * 49
    assert len(sample_probes(labels, 10_000)) == len(labels)


@pytest.mark.parametrize(
    "vectors", [np.tile([[1.0, 0.0]], (40, 1)), np.eye(40)], ids=["copies", "orthogonal"]
)
def test_similarities_that_are_all_the_same_have_no_tail(vectors):
    with pytest.raises(InvalidData, match="must have different similarities"):
        fit_tail(searched(vectors.astype(np.float32), np.arange(40), np.arange(40)).pairs())


def test_too_few_pairs_have_no_tail():
    with pytest.raises(InvalidData, match="A tail needs 20 impostor pairs; got 6"):
        fit_tail(searched(*people(3, 1), np.arange(3)).pairs())
    with pytest.raises(InvalidData, match="got 0"):
        fit_tail(pooled([]).pairs())

"""What only batches of similar classes promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data.sampling import SimilarClassBatchSampler, Stream
from dml.data.sampling.similar import _regroup, _to_fixed_point
from dml.errors import InvalidSetting
from tests.data.sampling.cases import pk, unit_vectors

P, N = 4, 5


def sampler(
    num_classes: int, *, seed: int = 0, first_step: int = 0, num_steps: int = 60, **others
) -> SimilarClassBatchSampler:
    settings_ = {"classes_per_batch": P, "refresh_every_steps": N, **others}
    return SimilarClassBatchSampler(
        np.repeat(np.arange(num_classes), 3),
        samples_per_class=2,
        stream=Stream(num_steps, seed=seed, first_step=first_step),
        **settings_,
    )


def regrouped_in_plain_loops(vectors, size, num_seeds):
    free = list(range(len(vectors)))
    batches = []
    while free:
        batch = []
        for _ in range(num_seeds):
            seed = free.pop(0)
            nearest = sorted(free, key=lambda other: (-float(vectors[seed] @ vectors[other]), other))
            nearest = nearest[: size // num_seeds - 1]
            batch += [seed, *nearest]
            free = [other for other in free if other not in nearest]
        batches.append(batch)
    return np.array(batches)


@given(num_batches=st.integers(1, 8), num_seeds=st.sampled_from([1, 2, 3, 6]), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_dealing_is_what_plain_loops_deal(num_batches, num_seeds, seed):
    exact = _to_fixed_point(unit_vectors(6 * num_batches, seed))
    want = regrouped_in_plain_loops(exact.astype(np.float64), 6, num_seeds)
    np.testing.assert_array_equal(_regroup(exact, 6, num_seeds), want)


def test_classes_that_come_in_tight_groups_are_put_together():
    group = np.arange(40) // P
    vectors = unit_vectors(10, dim=32)[group] + 0.01 * unit_vectors(40, seed=1, dim=32)
    batches = sampler(40, class_vectors=vectors, refresh_every_steps=10)
    for step in range(60):
        assert len(set(group[batches.global_classes(step)])) == 1


@pytest.mark.parametrize(("num_seeds", "gain"), [(1, 0.3), (2, 0.1)])
def test_a_batchs_classes_are_more_alike_than_those_of_plain_batches(num_seeds, gain):
    vectors = unit_vectors(97)
    hard = sampler(97, class_vectors=vectors, seeds_per_batch=num_seeds, refresh_every_steps=20)
    plain = pk(np.repeat(np.arange(97), 3), P, 2)

    def mean_similarity(batches):
        chosen = np.stack([vectors[batches.global_classes(step)] for step in range(60)])
        return ((chosen @ chosen.transpose(0, 2, 1)).sum() - 60 * P) / (60 * P * (P - 1))

    assert mean_similarity(hard) > mean_similarity(plain) + gain


@given(num_classes=st.integers(2 * P, 30), seed=st.integers(0, 999), first_step=st.integers(0, 59))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_for_any_vectors_every_class_appears_once_per_pass_and_a_resumed_run_draws_the_same(
    num_classes, seed, first_step
):
    def vectors_of(step):
        return unit_vectors(num_classes, seed=step // N)

    def run(first):
        batches = sampler(num_classes, seed=seed)
        if first >= N:
            batches.set_class_vectors(vectors_of(first))
        classes = []
        for step in range(first, 60):
            if step >= N and step % N == 0:
                batches.set_class_vectors(vectors_of(step))
            classes.append(batches.global_classes(step))
        return np.array(classes)

    whole = run(0)
    np.testing.assert_array_equal(run(first_step), whole[first_step:])
    stream = whole.reshape(-1)[: whole.size // num_classes * num_classes].reshape(-1, num_classes)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(num_classes), (len(stream), 1)))


def test_without_vectors_it_is_the_plain_sampler():
    batches, plain = sampler(20), pk(np.repeat(np.arange(20), 3), P, 2)
    for step in range(20):
        np.testing.assert_array_equal(batches.batch(step), plain.batch(step))


def test_vectors_set_within_a_round_hold_from_the_next_one_on():
    batches, undisturbed = (sampler(40, class_vectors=unit_vectors(40)) for _ in range(2))
    batches.batch(0)
    batches.set_class_vectors(unit_vectors(40, seed=1))
    for step in range(N):
        np.testing.assert_array_equal(batches.batch(step), undisturbed.batch(step))
    changed = sampler(40, class_vectors=unit_vectors(40, seed=1))
    assert [batches.batch(step).tolist() for step in range(N, 2 * N)] == [
        changed.batch(step).tolist() for step in range(N, 2 * N)
    ]


def test_batches_are_known_until_the_next_refresh():
    batches = sampler(20, num_steps=12)
    assert [batches.known_until(step) for step in (0, 4, 5, 9, 10, 11)] == [5, 5, 10, 10, 12, 12]


@pytest.mark.parametrize("dim", [1, 3, 128, 4096])
def test_similarities_are_the_same_in_whatever_order_they_are_added(dim):
    random = np.random.default_rng(0)
    exact = _to_fixed_point(random.normal(size=(50, dim)).astype(np.float32))
    want = exact.astype(np.float64) @ exact.astype(np.float64).T
    for _ in range(3):
        order = random.permutation(dim)
        np.testing.assert_array_equal(exact[:, order] @ exact[:, order].T, want)


def test_vectors_may_have_any_length_and_zeros_are_similar_to_none():
    vectors = unit_vectors(20)
    lengths = np.random.default_rng(2).uniform(1e-20, 1e20, (20, 1))
    assert np.abs(_to_fixed_point(vectors * lengths) - _to_fixed_point(vectors)).max() <= 1
    assert not _to_fixed_point(np.zeros((2, 3))).any()
    for step in range(10):
        assert len(set(sampler(20, class_vectors=np.zeros((20, 8))).global_classes(step))) == P


def test_what_cannot_be_is_refused():
    with pytest.raises(InvalidSetting, match="at least two batches of classes, 8; got 7"):
        sampler(7)
    with pytest.raises(InvalidSetting, match="multiple of seeds_per_batch; got 4 and 3"):
        sampler(20, seeds_per_batch=3)
    with pytest.raises(ValueError, match=r"up to 19; got \(19, 8\)"):
        sampler(20, class_vectors=unit_vectors(19))
    with pytest.raises(ValueError, match="finite"):
        sampler(20, class_vectors=np.full((20, 8), np.nan))

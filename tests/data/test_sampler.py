"""What the P x K sampler promises, on many small cases and at 10^7 rows."""

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data.sampler import PKBatchSampler, permutation
from dml.errors import InvalidSetting


def sampler(class_ids, p, k, **others) -> PKBatchSampler:
    settings_ = {"seed": 0, "num_steps": 100, **others}
    return PKBatchSampler(np.asarray(class_ids), classes_per_batch=p, samples_per_class=k, **settings_)


def uneven(num_classes: int, seed: int = 0) -> np.ndarray:
    sizes = np.random.default_rng(seed).integers(1, 12, num_classes)
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(num_classes), sizes))


cases = given(
    num_classes=st.integers(2, 40), p=st.integers(2, 12), k=st.integers(1, 6), seed=st.integers(0, 999)
)


@cases
@settings(max_examples=60, deadline=None)
def test_a_batch_has_p_classes_with_k_rows_each(num_classes, p, k, seed):
    p = min(p, num_classes)
    class_ids = uneven(num_classes, seed)
    batches = sampler(class_ids, p, k, seed=seed, num_steps=30)
    for rows in batches:
        assert Counter(Counter(class_ids[rows].tolist()).values()) == {k: p}


@cases
@settings(max_examples=60, deadline=None)
def test_a_class_appears_once_per_pass_and_an_image_once_per_round(num_classes, p, k, seed):
    p = min(p, num_classes)
    class_ids = uneven(num_classes, seed)
    sizes = np.bincount(class_ids, minlength=num_classes)
    batches = sampler(class_ids, p, k, seed=seed, num_steps=num_classes * 4)
    rows = np.concatenate([batches.batch(step) for step in range(num_classes * 4)])
    stream = class_ids[rows[::k]]
    for start in range(0, len(stream) - num_classes + 1, num_classes):
        assert sorted(stream[start : start + num_classes]) == list(range(num_classes))
    for label in range(num_classes):
        own = rows[class_ids[rows] == label]
        for visit in own.reshape(-1, k):
            counts = Counter(visit.tolist())
            assert max(counts.values()) - (min(counts.values()) if len(counts) == sizes[label] else 0) <= 1
            assert len(counts) == min(k, sizes[label])
        if sizes[label] >= k:
            whole = len(own) // sizes[label] * sizes[label]
            for round_ in own[:whole].reshape(-1, sizes[label]):
                assert len(set(round_.tolist())) == sizes[label], "every image before any comes again"


@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("num_classes", [7, 13, 40])
def test_the_global_stream_is_the_same_for_any_number_of_workers(world_size, num_classes):
    class_ids = uneven(num_classes)
    whole = sampler(class_ids, 6, 3)
    parts = [sampler(class_ids, 6, 3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(25):
        together = np.concatenate([part.batch(step) for part in parts])
        np.testing.assert_array_equal(together, whole.batch(step))
        ranks = [set(class_ids[part.batch(step)]) for part in parts]
        assert sum(map(len, ranks)) == len(set.union(*ranks)), "no class on two ranks"


def test_going_on_at_a_step_equals_never_having_stopped():
    class_ids = uneven(33)
    whole = list(sampler(class_ids, 4, 3))
    assert list(sampler(class_ids, 4, 3, first_step=57)) == whole[57:]
    assert len(sampler(class_ids, 4, 3, first_step=57)) == 43


def test_a_late_step_costs_what_an_early_one_does():
    class_ids = np.repeat(np.arange(1001), 7)
    late = sampler(class_ids, 32, 4, num_steps=10**12)
    begin = time.perf_counter()
    assert len(late.batch(10**11)) == 128
    assert time.perf_counter() - begin < 0.5


def test_other_seeds_give_other_streams_and_the_same_seed_the_same():
    class_ids = uneven(50)
    first = sampler(class_ids, 8, 4, seed=1)
    np.testing.assert_array_equal(first.batch(3), sampler(class_ids, 8, 4, seed=1).batch(3))
    assert not np.array_equal(first.batch(3), sampler(class_ids, 8, 4, seed=2).batch(3))
    assert not np.array_equal(first.global_classes(0), first.global_classes(50))


def test_the_stream_is_pinned_for_every_platform_and_version():
    assert permutation(10, 12345).tolist() == [2, 6, 0, 3, 1, 5, 7, 8, 4, 9]
    assert sampler(np.repeat(np.arange(5), 3), 2, 2, seed=7).batch(1000).tolist() == [7, 6, 13, 14]


def test_every_place_of_a_permutation_is_equally_likely():
    counts = np.zeros((6, 6))
    for key in range(6000):
        counts[np.arange(6), permutation(6, key * 977)] += 1
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_squared < 60, "25 degrees of freedom; beyond 60 once in 10,000 draws"


def test_batches_of_few_classes_do_not_always_hold_the_same_ones():
    class_ids = np.repeat(np.arange(10), 4)
    pairs = {frozenset(sampler(class_ids, 8, 2).global_classes(step).tolist()) for step in range(400)}
    assert len(pairs) > 30, "of the 45 there are"


def test_empty_class_ids_are_left_out():
    class_ids = np.array([5, 5, 9, 9, 2])
    assert sampler(class_ids, 3, 2).classes.tolist() == [2, 5, 9]
    assert set(class_ids[sampler(class_ids, 3, 2).batch(0)]) == {2, 5, 9}


def test_it_serves_a_data_loader_as_batch_sampler():
    class_ids = uneven(20)
    rows = torch.arange(len(class_ids))
    batches = sampler(class_ids, 4, 2, num_steps=5)
    loader = torch.utils.data.DataLoader(rows, batch_sampler=batches)
    assert [batch.tolist() for batch in loader] == list(batches)


def test_what_cannot_be_is_refused():
    with pytest.raises(InvalidSetting, match="multiple of world_size"):
        sampler(np.arange(10), 5, 2, world_size=2)
    with pytest.raises(InvalidSetting, match="Lower classes_per_batch"):
        sampler(np.arange(3), 5, 2)


@pytest.mark.slow
def test_ten_million_rows_of_a_million_classes_are_planned_in_two_seconds_and_500_megabytes():
    class_ids = np.random.default_rng(0).integers(0, 1_000_000, 10_000_000)

    def plan():
        batches = sampler(class_ids, 28, 4)
        return [batches.batch(step) for step in (0, 1, 2, 35_714)]  # the last straddles two passes

    begin = time.process_time()  # of this process, whatever else the machine does
    plan()
    seconds = time.process_time() - begin
    tracemalloc.start()
    plan()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{seconds:.2f} s, {peak / 1e6:.0f} MB")
    assert seconds < 2
    assert peak < 500e6

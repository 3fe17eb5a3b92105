"""What only batches of one attribute's value promise."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data.sampling import AttributeBatchSampler, Stream
from dml.errors import InvalidSetting

P, K = 3, 2


def sampler(class_ids, values, *, seed=0, **others) -> AttributeBatchSampler:
    return AttributeBatchSampler(
        np.asarray(class_ids),
        np.asarray(values),
        classes_per_batch=P,
        samples_per_class=K,
        stream=Stream(100, seed=seed),
        **others,
    )


def rows_of(classes_per_value: list[int], per_class: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(class ids, values) of values with so many classes each, class ids going through the values in turn."""
    values = np.repeat(np.arange(len(classes_per_value)), classes_per_value)
    order = np.random.default_rng(0).permutation(len(values))
    return np.repeat(np.arange(len(values)), per_class), np.repeat(values[order], per_class)


large_values = given(sizes=st.lists(st.integers(P, 9), min_size=1, max_size=5), seed=st.integers(0, 999))


@large_values
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_all_classes_of_a_batch_share_the_value_it_names(sizes, seed):
    class_ids, values = rows_of(sizes)
    batches = sampler(class_ids, values, seed=seed)
    for step in range(100):
        rows = batches.batch(step)
        assert set(values[rows]) == {batches.value(step)}
        assert set(class_ids[rows]) == set(batches.global_classes(step))


@large_values
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_values_take_turns_in_proportion_to_their_classes(sizes, seed):
    class_ids, values = rows_of(sizes)
    batches = sampler(class_ids, values, seed=seed)
    cycle = sum(sizes) // int(np.gcd.reduce(sizes))
    shares = np.array(sizes) / sum(sizes)
    turns = np.zeros(len(sizes))
    classes = np.zeros(sum(sizes))
    for step in range(3 * cycle):
        turns[batches.value(step)] += 1
        assert abs(turns - shares * (step + 1)).max() < len(sizes), "evenly, not one value after the other"
        classes[batches.global_classes(step)] += 1
        if (step + 1) % cycle == 0:
            np.testing.assert_allclose(turns, shares * (step + 1))
            assert classes.max() - classes.min() <= 1


def test_every_class_of_a_value_appears_once_per_pass_of_it():
    class_ids, values = rows_of([4, 7])
    batches = sampler(class_ids, values)
    for value, size in enumerate([4, 7]):
        steps = [step for step in range(100) if batches.value(step) == value]
        stream = np.concatenate([batches.global_classes(step) for step in steps])
        for start in range(0, len(stream) - size + 1, size):
            assert set(stream[start : start + size]) == set(class_ids[values == value])


def test_values_of_too_few_classes_are_pooled_and_all_their_rows_used():
    class_ids, values = rows_of([2, 5, 1, 1])
    batches = sampler(class_ids, values)
    together = {frozenset(values[rows].tolist()) for rows in batches}
    assert frozenset({1}) in together
    assert all(actual == {1} or actual <= {0, 2, 3} for actual in together)
    assert len(set(np.concatenate(list(batches)).tolist())) == len(class_ids)


def test_a_pool_of_too_few_classes_takes_in_the_smallest_other_value():
    class_ids, values = rows_of([5, 1, 4, 1])
    batches = sampler(class_ids, values)
    assert batches.pooled_into.tolist() == [0, 1, 1, 1]
    assert all(set(values[rows]) == {0} or set(values[rows]) <= {1, 2, 3} for rows in batches)


def test_values_of_too_few_classes_are_refused_by_name_where_configured():
    class_ids, values = rows_of([2, 5])
    with pytest.raises(InvalidSetting, match=r"\{'cups': 2\}.*'pool'"):
        sampler(class_ids, values, small_values="refuse", value_names=["cups", "chairs"])


MIXED_CLASSES = np.repeat(np.arange(6), 4)
# Class 0 has rows of both values, most of value 1; class 1 as many of each; 2 and 3 only 0; 4 and 5 only 1.
MIXED_VALUES = np.array([0, 1, 1, 1] + [1, 1, 0, 0] + [0] * 8 + [1] * 8)


def test_a_class_of_several_values_is_refused_with_what_to_do():
    with pytest.raises(InvalidSetting, match=r"2 classes have several, such as class 0 with \['a', 'b'\]"):
        sampler(MIXED_CLASSES, MIXED_VALUES, value_names=["a", "b"])


def test_majority_gives_a_class_to_its_most_frequent_value_with_all_its_rows():
    batches = sampler(MIXED_CLASSES, MIXED_VALUES, several_values="majority")
    actual = {value: set() for value in (0, 1)}
    for step in range(100):
        actual[batches.value(step)] |= set(batches.global_classes(step).tolist())
    assert actual == {0: {1, 2, 3}, 1: {0, 4, 5}}
    assert len(set(np.concatenate(list(batches)).tolist())) == 24


def test_split_lets_a_class_appear_under_each_value_with_the_rows_of_that_one():
    batches = sampler(MIXED_CLASSES, MIXED_VALUES, several_values="split")
    seen = Counter()
    for step in range(100):
        rows = batches.batch(step)
        assert set(MIXED_VALUES[rows]) == {batches.value(step)}
        assert Counter(Counter(MIXED_CLASSES[rows].tolist()).values()) == {K: P}
        seen.update(rows.tolist())
    assert len(seen) == 24


def test_a_split_class_whose_values_are_pooled_is_one_class():
    class_ids, values = [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 0, 1, 2, 2]
    batches = AttributeBatchSampler(
        np.array(class_ids),
        np.array(values),
        classes_per_batch=4,
        samples_per_class=K,
        several_values="split",
        stream=Stream(5),
    )
    assert all(sorted(batches.global_classes(step)) == [0, 1, 2, 3] for step in range(5))

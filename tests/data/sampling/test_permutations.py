"""Windows of endless permutations: distinct inside, fair over time, and any of them without the others."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data.sampling.permutations import Permutations, permutation


@given(n=st.integers(1, 60), size=st.integers(1, 70), key=st.integers(0, 2**64 - 1))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_no_item_is_ever_twice_ahead_and_none_comes_twice_in_a_window_that_can_do_without(n, size, key):
    counts = np.zeros(n, dtype=int)
    for index in range(3 * n):
        window = Permutations().window(n, size, index, key)
        assert len(window) == size
        assert len(set(window.tolist())) == min(n, size)
        counts += np.bincount(window, minlength=n)
        assert counts.max() - counts.min() <= 1


@given(n=st.integers(2, 60), size=st.integers(1, 60), key=st.integers(0, 2**64 - 1))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_windows_put_together_are_permutations_put_together(n, size, key):
    size = min(n, size)
    made = Permutations()
    stream = np.concatenate([made.window(n, size, index, key) for index in range(4 * n)])
    np.testing.assert_array_equal(
        np.sort(stream.reshape(-1, n), axis=1), np.tile(np.arange(n), (4 * size, 1))
    )


@pytest.mark.parametrize("size", [3, 5, 7, 8], ids=lambda size: f"{size} of 10")
def test_any_two_items_meet_in_a_window_as_often_as_any_others(size):
    together = np.zeros((10, 10))
    made = Permutations()
    for index in range(5000):
        window = made.window(10, size, index, 99)
        together[np.ix_(window, window)] += 1
    pairs = together[np.triu_indices(10, 1)]
    expected = 5000 * size * (size - 1) / 90
    assert abs(pairs / expected - 1).max() < 0.15


def test_orders_change_from_pass_to_pass_however_few_items_a_window_leaves_out():
    for n, size in [(31, 16), (10, 9), (20, 20), (251, 100)]:
        made = Permutations()
        windows = {tuple(made.window(n, size, index, 5).tolist()) for index in range(300)}
        assert len(windows) == 300


def test_every_place_of_a_permutation_is_equally_likely():
    counts = np.zeros((6, 6))
    for key in range(6000):
        counts[np.arange(6), permutation(6, key * 977)] += 1
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_squared < 60, "25 degrees of freedom; beyond 60 once in 10,000 draws"


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, 5000])
def test_a_permutation_has_every_item_once(n):
    np.testing.assert_array_equal(np.sort(permutation(n, 2**64 - 1)), np.arange(n))


def test_a_window_of_a_kept_permutation_costs_the_window():
    made = Permutations()
    n = 3_000_001
    for index in (n // 100 + 10, n // 100 + 11):
        made.window(n, 100, index, 0)
    begin = time.process_time()
    for index in range(n // 100 + 1000, n // 100 + 1100):
        made.window(n, 100, index, 0)
    windows_s = time.process_time() - begin
    begin = time.process_time()
    for _ in range(100):
        np.arange(n)
    assert windows_s < (time.process_time() - begin) / 2, "as if all items were copied"


def test_the_permutation_is_pinned_for_every_platform_and_version():
    assert permutation(10, 12345).tolist() == [2, 6, 0, 3, 1, 5, 7, 8, 4, 9]

"""What only shuffled batches promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data.sampling import ShuffledBatchSampler, Stream
from dml.errors import InvalidSetting


@given(n=st.integers(2, 80), batch_size=st.integers(1, 80), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_every_row_comes_once_per_epoch_and_never_twice_in_a_batch(n, batch_size, seed):
    batch_size = min(n, batch_size)
    batches = list(ShuffledBatchSampler(n, batch_size=batch_size, stream=Stream(3 * n, seed=seed)))
    assert all(len(set(rows)) == batch_size for rows in batches)
    epochs = np.concatenate(batches).reshape(-1, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (len(epochs), 1)))
    if n > 20:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs), "each shuffled anew"


def test_what_is_left_of_an_epoch_opens_the_next_ones_first_batch():
    batches = list(ShuffledBatchSampler(10, batch_size=4, stream=Stream(5)))
    assert sorted(batches[0] + batches[1] + batches[2][:2]) == list(range(10))
    assert sorted(batches[2][2:] + batches[3] + batches[4]) == list(range(10))


def test_one_row_fewer_than_a_batch_is_refused():
    with pytest.raises(InvalidSetting, match=r"there are 7\. Lower batch_size"):
        ShuffledBatchSampler(7, batch_size=8, stream=Stream(1))

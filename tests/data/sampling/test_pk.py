"""What only P x K batches promise."""

import time
import tracemalloc

import numpy as np
import pytest

from dml.data.sampling import PKBatchSampler, Stream
from tests.data.sampling.cases import pk, uneven


def test_where_w_divides_only_the_rows_a_class_may_be_on_two_neighbouring_ranks_and_all_rows_are_there():
    class_ids = uneven(40)
    parts = [pk(class_ids, 5, 4, rank=rank, world_size=4) for rank in range(4)]
    classes = [class_ids[part.batch(0)].tolist() for part in parts]
    assert [len(of_rank) for of_rank in classes] == [5, 5, 5, 5]
    together = [label for of_rank in classes for label in of_rank]
    assert together == [label for label in dict.fromkeys(together) for _ in range(4)], "class after class"


def test_batches_of_few_classes_do_not_always_hold_the_same_ones():
    class_ids = np.repeat(np.arange(10), 4)
    pairs = {frozenset(pk(class_ids, 8, 2).global_classes(step).tolist()) for step in range(400)}
    assert len(pairs) > 30, "of the 45 there are"


@pytest.mark.parametrize("offset", [0, 2**40], ids=["small", "huge"])
def test_class_ids_without_rows_are_left_out(offset):
    class_ids = np.array([5, 5, 9, 9, 2]) + offset
    assert (pk(class_ids, 3, 2).classes - offset).tolist() == [2, 5, 9]
    assert set(class_ids[pk(class_ids, 3, 2).batch(0)] - offset) == {2, 5, 9}


def test_a_class_of_one_image_gives_it_k_times():
    class_ids = np.array([0, 1, 1, 1, 1])
    assert pk(class_ids, 2, 4).batch(0).tolist().count(0) == 4


@pytest.mark.slow
def test_ten_million_rows_of_a_million_classes_are_planned_in_two_seconds_and_500_megabytes():
    class_ids = np.random.default_rng(0).integers(0, 1_000_000, 10_000_000)

    def plan():
        batches = PKBatchSampler(class_ids, classes_per_batch=28, samples_per_class=4, stream=Stream(10**9))
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

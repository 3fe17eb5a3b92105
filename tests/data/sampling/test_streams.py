"""What every sampler promises: one global stream for any W, any step at once, and a place in a DataLoader."""

import time
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dml.errors import InvalidSetting
from dml.training.spawn import run_ranks
from tests.data.sampling import cases
from tests.data.sampling.cases import CLASS_MAKERS, MAKERS, uneven

every_sampler = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
every_class_sampler = pytest.mark.parametrize("make", CLASS_MAKERS, ids=lambda make: make.__name__)


@every_sampler
@given(num_classes=st.integers(13, 50), seed=st.integers(0, 999), world_size=st.integers(1, 4))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_the_ranks_batches_in_rank_order_are_the_global_batch_of_one_worker(
    make, num_classes, seed, world_size
):
    class_ids = uneven(num_classes, seed)
    p, k = 3, 4  # W = 2 and 4 divide only P * K
    whole = make(class_ids, p, k, seed=seed)
    parts = [make(class_ids, p, k, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(20):
        own = [part.batch(step) for part in parts]
        assert {len(rows) for rows in own} == {p * k // world_size}
        np.testing.assert_array_equal(np.concatenate(own), whole.batch(step))
        if make is not cases.shuffled and p % world_size == 0:
            classes = [set(class_ids[rows]) for rows in own]
            assert sum(map(len, classes)) == len(set.union(*classes)) == p, "no class on two ranks"


@every_sampler
@given(num_classes=st.integers(13, 50), seed=st.integers(0, 999), step=st.integers(0, 100))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_going_on_at_any_step_gives_the_tail_of_the_stream(make, num_classes, seed, step):
    class_ids = uneven(num_classes, seed)
    resumed = make(class_ids, 4, 3, seed=seed, first_step=step)
    assert list(resumed) == list(make(class_ids, 4, 3, seed=seed))[step:]
    assert len(resumed) == 100 - step


@every_class_sampler
@given(num_classes=st.integers(24, 50), k=st.integers(1, 6), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_a_batch_has_p_classes_with_k_rows_each_and_no_row_twice_where_the_class_has_k(
    make, num_classes, k, seed
):
    class_ids = uneven(num_classes, seed)
    sizes = np.bincount(class_ids)
    for rows in make(class_ids, 4, k, seed=seed, num_steps=30):
        assert Counter(Counter(class_ids[rows].tolist()).values()) == {k: 4}
        for label in set(class_ids[rows].tolist()):
            own = [row for row in rows if class_ids[row] == label]
            assert len(set(own)) == min(k, sizes[label])


@every_class_sampler
@given(num_classes=st.integers(24, 50), k=st.integers(1, 6), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_at_no_time_has_an_image_of_a_class_been_used_twice_more_than_another(make, num_classes, k, seed):
    class_ids = uneven(num_classes, seed)
    counts = np.zeros(len(class_ids), dtype=int)
    for rows in make(class_ids, 4, k, seed=seed, num_steps=60):
        counts += np.bincount(rows, minlength=len(class_ids))
        for label in set(class_ids[rows].tolist()):
            own = counts[class_ids == label]
            assert own.max() - own.min() <= 1


@pytest.mark.parametrize("make", [cases.pk, cases.similar], ids=lambda make: make.__name__)
@given(num_classes=st.integers(13, 50), k=st.integers(1, 6), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_every_class_appears_once_per_pass(make, num_classes, k, seed):
    class_ids = uneven(num_classes, seed)
    rows = np.concatenate([np.array(batch) for batch in make(class_ids, 5, k, seed=seed, num_steps=80)])
    stream = class_ids[rows[::k]]
    whole = stream[: len(stream) // num_classes * num_classes].reshape(-1, num_classes)
    np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(num_classes), (len(whole), 1)))


@every_sampler
def test_a_late_step_costs_what_an_early_one_does(make):
    late = make(np.repeat(np.arange(1001), 7), 32, 4, num_steps=10**12)
    begin = time.process_time()
    assert len(late.batch(10**11)) == 128
    assert time.process_time() - begin < 20, "all steps before it would take days"


@every_sampler
def test_other_seeds_give_other_streams_and_the_same_seed_the_same(make):
    class_ids = uneven(60)
    np.testing.assert_array_equal(
        make(class_ids, 8, 4, seed=1).batch(3), make(class_ids, 8, 4, seed=1).batch(3)
    )
    assert not np.array_equal(make(class_ids, 8, 4, seed=1).batch(3), make(class_ids, 8, 4, seed=2).batch(3))
    assert not np.array_equal(make(class_ids, 8, 4).batch(0), make(class_ids, 8, 4).batch(70))


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (cases.pk, [6, 8, 17, 15, 3, 4]),
        (cases.attribute, [3, 5, 23, 21, 13, 12]),
        (cases.similar, [6, 8, 3, 4, 17, 15]),
        (cases.shuffled, [24, 23, 8, 15, 0, 22]),
    ],
    ids=["pk", "attribute", "similar", "shuffled"],
)
def test_the_stream_is_pinned_for_every_platform_and_version(make, rows):
    assert make(np.repeat(np.arange(9), 3), 3, 2, seed=7, num_steps=2000).batch(1000).tolist() == rows


class Numbered(torch.utils.data.Dataset):
    """Row n is the number n: importable, so that a loader's workers can have it."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> int:
        return row


@every_sampler
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_takes_it_as_batch_sampler(make, num_workers):
    class_ids = uneven(30)
    batches = make(class_ids, 4, 2, num_steps=6)
    loader = DataLoader(Numbered(len(class_ids)), batch_sampler=batches, num_workers=num_workers)
    assert len(loader) == 6
    for _ in range(2):
        assert [batch.tolist() for batch in loader] == list(batches)


def _load_on_this_rank() -> list[list[list[int]]]:
    class_ids = uneven(30)
    place = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    loaded = []
    for make in MAKERS:
        loader = DataLoader(
            Numbered(len(class_ids)), batch_sampler=make(class_ids, 4, 2, num_steps=6, **place)
        )
        loaded.append([batch.tolist() for batch in loader])
    return loaded


def test_data_loaders_of_two_ddp_ranks_share_the_batches_without_a_distributed_sampler():
    first, second = run_ranks(2, _load_on_this_rank)
    for make, zeroth, one in zip(MAKERS, first, second, strict=True):
        together = [a + b for a, b in zip(zeroth, one, strict=True)]
        assert together == list(make(uneven(30), 4, 2, num_steps=6))


@every_sampler
def test_places_that_cannot_be_are_refused(make):
    with pytest.raises(InvalidSetting, match=r"multiple of world_size; got 12 and 5\. Nearest: 10"):
        make(uneven(30), 4, 3, world_size=5)
    with pytest.raises(InvalidSetting, match=r"rank must be in \[0, 2\)"):
        make(uneven(30), 4, 3, rank=2, world_size=2)
    with pytest.raises(InvalidSetting, match="first_step"):
        make(uneven(30), 4, 3, first_step=101)


@pytest.mark.parametrize("make", [cases.pk, cases.attribute, cases.similar], ids=lambda make: make.__name__)
def test_one_class_fewer_than_p_is_refused(make):
    with pytest.raises(InvalidSetting, match=r"there are 4\. Lower classes_per_batch"):
        make(np.arange(4), 5, 2)

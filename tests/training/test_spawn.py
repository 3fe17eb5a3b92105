"""Processes that are started as a group end as one."""

import os

import pytest
import torch.distributed as dist

from dml.training.spawn import run_ranks


def fail_on_one_rank() -> None:
    if dist.get_rank() == 1:
        raise ArithmeticError("rank one says no")
    dist.barrier()


def threads() -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def test_a_rank_that_fails_is_reported_with_its_error():
    with pytest.raises(RuntimeError, match="rank one says no"):
        run_ranks(2, fail_on_one_rank)


def test_each_rank_has_one_thread_and_the_caller_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run_ranks(2, threads) == ["1", "1"]
    assert threads() == "7"

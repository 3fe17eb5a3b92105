"""A call that takes too long is abandoned."""

import threading
from contextvars import ContextVar

import pytest

from dml.deadline import call_within

user: ContextVar[str] = ContextVar("user", default="unknown")


def test_a_call_in_time_returns_or_raises_as_the_function_does():
    user.set("me")
    assert call_within(5, user.get) == "me"
    assert call_within(5, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 / 0)


def test_a_call_that_exceeds_its_limit_raises():
    over = threading.Event()
    with pytest.raises(TimeoutError, match=r"no complete answer within 0\.1 s"):
        call_within(0.1, over.wait)
    over.set()


def test_whoever_waits_is_told_for_how_long_and_no_more_once_there_is_an_answer():
    said: list[float] = []
    over = threading.Event()
    with pytest.raises(TimeoutError):
        call_within(0.5, over.wait, waiting=said.append, every_s=0.2)
    over.set()
    assert len(said) == 2
    assert said == pytest.approx([0.2, 0.4], abs=0.15)
    assert call_within(5, lambda: 1, waiting=said.append, every_s=0.2) == 1
    assert len(said) == 2

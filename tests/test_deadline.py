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

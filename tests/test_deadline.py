"""What takes too long is not waited for."""

import threading
from contextvars import ContextVar

import pytest

from dml.deadline import within

asked_by: ContextVar[str] = ContextVar("asked_by", default="nobody")


def test_an_answer_in_time_is_the_functions_own_and_so_is_an_error():
    asked_by.set("me")
    assert within(5, asked_by.get) == "me"
    assert within(5, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)


def test_what_does_not_end_is_left_alone():
    over = threading.Event()
    with pytest.raises(TimeoutError, match=r"no whole answer in 0\.1 s"):
        within(0.1, over.wait)
    over.set()

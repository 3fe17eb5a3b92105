"""Many who ask for one slow function."""

import threading

import pytest

from dml.serving.shared_call import SharedCall


class Slow:
    """A function that waits to be let go; counts its calls."""

    def __init__(self):
        self.calls, self.go, self.fails = 0, threading.Event(), False

    def __call__(self):
        self.calls += 1
        self.go.wait(10)
        if self.fails:
            raise ValueError("it failed")
        return self.calls


def test_who_does_not_wait_long_enough_finds_the_result_later():
    slow = Slow()
    shared = SharedCall(slow, keeps=True)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            shared(wait_s=0.01)
    slow.go.set()
    assert [shared(), shared()] == [1, 1]


def test_what_is_not_kept_is_asked_for_again():
    slow = Slow()
    slow.go.set()
    shared = SharedCall(slow, keeps=False)
    assert [shared(), shared()] == [1, 2]


def test_an_error_is_raised_and_not_kept():
    slow = Slow()
    slow.fails = True
    slow.go.set()
    shared = SharedCall(slow, keeps=True)
    with pytest.raises(ValueError, match="it failed"):
        shared()
    slow.fails = False
    assert shared() == 2

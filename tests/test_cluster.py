"""A Ray session leaves the process, and the machine, as it found them."""

import signal

import pytest

from dml.cluster import ray_session


def fail_in_a_session(handler):
    import ray

    with ray_session(2):
        assert signal.getsignal(signal.SIGTERM) is handler
        with ray_session():
            assert ray.get(ray.remote(lambda: 7).remote()) == 7
        assert ray.is_initialized(), "an open session is used, and stays open"
        raise ZeroDivisionError


@pytest.mark.slow
def test_a_session_restores_the_signal_handler_and_ends_with_its_body():
    import ray

    def handler(number, frame):
        raise SystemExit

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(ZeroDivisionError):
            fail_in_a_session(handler)
        assert not ray.is_initialized()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)

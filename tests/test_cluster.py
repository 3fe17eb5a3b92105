"""A Ray session leaves the process, and the machine, as it found them."""

import os
import signal

import numpy as np
import pytest

from dml.cluster import call_apart, map_apart, ray_session
from dml.errors import InvalidSetting


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


def process_id() -> int:
    return os.getpid()


def refuse(what: str) -> None:
    raise InvalidSetting(f"{what} in {os.getpid()}")


@pytest.mark.slow
def test_a_call_apart_runs_in_another_process_and_its_errors_come_back_as_they_are():
    with ray_session(1):
        assert call_apart(process_id, num_cpus=1, num_gpus=0) != os.getpid()
        with pytest.raises(InvalidSetting, match="no such setting in") as refused:
            call_apart(refuse, "no such setting", num_cpus=1, num_gpus=0)
    assert type(refused.value) is InvalidSetting, "a flow tells the user's mistakes by their class"
    assert str(os.getpid()) not in str(refused.value)


def read(shared: np.ndarray, part: slice) -> tuple[float, bool, int]:
    return float(shared[part].sum()), shared.flags.writeable, os.getpid()


def die_once(marker: str, part: int) -> int:
    if part == 1 and not os.path.exists(marker):
        with open(marker, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    return part


@pytest.mark.slow
def test_parts_share_one_array_and_a_killed_one_is_done_again(tmp_path):
    numbers = np.arange(1_000_000, dtype=np.float64)
    parts = [slice(start, start + 250_000) for start in range(0, 1_000_000, 250_000)]
    with ray_session(2):
        found = list(map_apart(read, numbers, parts))
        assert [total for total, _, _ in found] == [numbers[part].sum() for part in parts]
        assert not any(writeable for _, writeable, _ in found), "looked at where it lies, not copied"
        assert os.getpid() not in {process for _, _, process in found}
        assert list(map_apart(die_once, str(tmp_path / "died"), [0, 1, 2])) == [0, 1, 2]
        assert (tmp_path / "died").exists()

"""A Ray session restores the process and the machine to their former state."""

import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from dml.cluster import call_remote, capacity, map_remote, quiet_ray_data, ray_session, use_gpu
from dml.errors import InvalidSetting, Unreachable
from tests.growing_cluster import growing_cluster

GPU_NODES = {"gpu": {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 1}}
CPU_NODES = {"cpu": {"resources": {"CPU": 2}, "max_workers": 1}}
needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self"), reason="finds the cluster's processes there"
)


def fail_in_a_session(handler):
    import ray

    with ray_session(2):
        assert signal.getsignal(signal.SIGTERM) is handler
        with ray_session():
            assert ray.get(ray.remote(lambda: 7).remote()) == 7
        assert ray.is_initialized(), "an open session is used, and stays open"
        raise ZeroDivisionError


@pytest.mark.ray
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


@pytest.mark.ray
@pytest.mark.slow
def test_a_thread_that_outlives_its_session_starts_no_second_ray():
    code = (
        "from dml.cluster import ray_session\n"
        "with ray_session(1): import ray\n"
        "try: ray.put(1)\n"
        "except Exception as error: print(error)"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "Ray has not been started yet" in completed.stdout, completed.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_thread_that_frees_references_while_the_session_ends_does_not_end_the_process():
    code = (
        "import threading, time\n"
        "from dml.cluster import ray_session\n"
        "with ray_session(1):\n"
        "    import ray\n"
        "    references = [ray.put(1) for _ in range(3000)]\n"
        "    def free():\n"
        "        while ray.is_initialized(): time.sleep(0.0005)\n"
        "        while references: references.pop(), time.sleep(0.0005)\n"
        "    thread = threading.Thread(target=free)\n"
        "    thread.start()\n"
        "thread.join()\n"
        "print('ended')"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (completed.returncode, completed.stdout) == (0, "ended\n"), completed.stderr


def process_id() -> int:
    return os.getpid()


def refuse(what: str) -> None:
    raise InvalidSetting(f"{what} in {os.getpid()}")


@pytest.mark.ray
@pytest.mark.slow
def test_a_remote_call_runs_in_another_process_and_reraises_its_errors():
    with ray_session(1):
        assert call_remote(process_id, num_cpus=1, num_gpus=0) != os.getpid()
        with pytest.raises(InvalidSetting, match="no such setting in") as refused:
            call_remote(refuse, "no such setting", num_cpus=1, num_gpus=0)
    assert type(refused.value) is InvalidSetting, "a flow recognizes the user's mistakes by their class"
    assert str(os.getpid()) not in str(refused.value)


def read(shared: np.ndarray, part: slice) -> tuple[float, bool, int]:
    return float(shared[part].sum()), shared.flags.writeable, os.getpid()


def die_once(marker: str, part: int) -> int:
    if part == 1 and not os.path.exists(marker):
        with open(marker, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    return part


@pytest.mark.ray
@pytest.mark.slow
def test_remote_tasks_share_one_array_and_a_killed_task_runs_again(tmp_path):
    numbers = np.arange(1_000_000, dtype=np.float64)
    parts = [slice(start, start + 250_000) for start in range(0, 1_000_000, 250_000)]
    with ray_session(2):
        results = list(map_remote(read, numbers, parts))
        assert [total for total, _, _ in results] == [numbers[part].sum() for part in parts]
        assert not any(writeable for _, writeable, _ in results), "read without a copy"
        assert os.getpid() not in {process for _, _, process in results}
        assert list(map_remote(die_once, str(tmp_path / "died"), [0, 1, 2])) == [0, 1, 2]
        assert (tmp_path / "died").exists()


@pytest.mark.ray
@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("nodes", "gpus"), [(GPU_NODES, 1), (CPU_NODES, 0)], ids=["gpu nodes", "cpu nodes"])
def test_a_gpu_is_requested_from_a_cluster_that_has_none_yet(nodes, gpus, monkeypatch, caplog):
    caplog.set_level("INFO", logger="dml.cluster")
    with growing_cluster(nodes) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with ray_session():
            available = capacity("GPU")
            assert (available.now, available.most) == (0, gpus)
            assert use_gpu("train") is bool(gpus)
            assert use_gpu("train", setting=True), "the user's setting wins where the maximum is unknown"
            assert not use_gpu("train", setting=False)
    (line,) = (record.message for record in caplog.records if record.message.startswith("train"))
    assert f"1 workers on {'GPU' if gpus else 'CPU'}s" in line
    assert "DML_CLUSTER_GPUS" in line


@pytest.mark.ray
@pytest.mark.slow
@needs_proc
def test_settings_of_the_cluster_size_are_used_without_a_request(monkeypatch):
    with growing_cluster(GPU_NODES) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setenv("DML_CLUSTER_GPUS", "3")
        monkeypatch.setenv("DML_CLUSTER_CPUS", "24")
        with ray_session():
            gpus, cpus = capacity("GPU", wanted=3), capacity("CPU")
            assert (gpus.now, gpus.most, cpus.now, cpus.most) == (0, 3, 1, 24)
            assert use_gpu("train", 3)
            assert not use_gpu("train", 4)
            with pytest.raises(InvalidSetting, match="for each of 4 workers"):
                use_gpu("train", 4, setting=True)
            monkeypatch.setenv("DML_CLUSTER_GPUS", "many")
            with pytest.raises(InvalidSetting, match="DML_CLUSTER_GPUS must be a whole number; got 'many'"):
                capacity("GPU")


@pytest.mark.ray
@pytest.mark.slow
def test_settings_of_the_cluster_size_do_not_apply_to_this_machine(monkeypatch):
    monkeypatch.setenv("DML_CLUSTER_GPUS", "3")
    with ray_session(2):
        assert capacity("CPU").most == 2
        assert capacity("GPU").most == capacity("GPU").now, "the setting is about the cluster of RAY_ADDRESS"


@pytest.mark.ray
@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("has_token", [True, False])
def test_the_users_token_is_sent_to_a_cluster_that_requires_it(has_token, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    if has_token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    code = (
        "from dml.cluster import map_remote, ray_session\n"
        "with ray_session(): print(*map_remote(pow, 3, [1, 2]))"
    )
    with growing_cluster({}, environment=environment) as address:
        environment |= {"RAY_ADDRESS": address, "DML_CLUSTER_GPUS": "0"}
        command = [sys.executable, "-c", code]
        completed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.split()[-2:] == ["3", "9"]


def test_an_address_that_does_not_answer_fails_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"), ray_session():
        pass


@pytest.mark.parametrize(("given", "expected"), [(None, "0"), ("1", "1")])
def test_ray_collects_no_metrics_unless_the_user_asks_for_them(given, expected, monkeypatch):
    monkeypatch.setenv("RAY_enable_metrics_collection", given or "")
    if given is None:
        monkeypatch.delenv("RAY_enable_metrics_collection")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(Unreachable), ray_session():
        pass
    assert os.environ["RAY_enable_metrics_collection"] == expected  # noqa: SIM112


def test_ray_data_does_not_warn_that_a_busy_machine_hangs():
    quiet_ray_data()
    starved = logging.getLogger("ray.data._internal.execution.resource_manager")
    assert not starved.isEnabledFor(logging.WARNING)
    assert logging.getLogger("ray.data._internal.execution.operators").isEnabledFor(logging.WARNING)

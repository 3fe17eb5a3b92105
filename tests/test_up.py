"""The parts of `dml up` that need no server; tests/flows/test_server.py tests the whole stack."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dml import processes, up
from dml.errors import InvalidSetting, StackFailed
from dml.reports import StackAddresses

SLEEP = "import time; time.sleep(600)"
PYTHONPATH = str(Path(__file__).parents[1])


@pytest.fixture
def program(tmp_path: Path):
    """Make `python -m NAME` run the given source."""

    def write(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def stack_in(folder: Path) -> up.Stack:
    return up.Stack(folder, folder, {"GREETING": "hello", "PYTHONPATH": PYTHONPATH})


def test_a_port_in_use_is_refused_with_its_process(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind((up.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            InvalidSetting, match=rf"Port {port} must be free; pid {os.getpid()} .*--prefect-port"
        ):
            up.run_local_stack(str(tmp_path), prefect_port=port, announce=up.print_addresses)


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ({"prefect_port": 99_999}, "--prefect-port must be a port, 1 to 65535; got 99999"),
        ({"mlflow_port": 0}, "--mlflow-port must be a port, 1 to 65535; got 0"),
        ({"prefect_port": -3}, "--prefect-port must be a port, 1 to 65535; got -3"),
        ({"prefect_port": 5_000, "mlflow_port": 5_000}, "must differ; both are 5000"),
    ],
)
def test_invalid_ports_are_refused_before_anything_starts(tmp_path: Path, ports, message):
    with pytest.raises(InvalidSetting, match=message):
        up.run_local_stack(str(tmp_path / "store"), **ports, announce=up.print_addresses)
    assert not (tmp_path / "store").exists()


def test_a_killed_part_is_reported_with_its_signal(tmp_path: Path, program):
    stack = stack_in(tmp_path)
    with stack.running():
        stack.start("killed", program("killed", "import os; os.kill(os.getpid(), 9)"))
        with pytest.raises(StackFailed, match="killed must keep running; it was killed by SIGKILL"):
            stack.wait()


def test_a_part_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path, program):
    stack = stack_in(tmp_path)
    source = "import os, sys; print(os.environ['GREETING'], 'and goodbye'); sys.exit(3)"
    with stack.running():
        stack.start("dying", program("dying", source))
        with pytest.raises(StackFailed, match=r"dying must keep running.*status 3(.|\n)*hello and goodbye"):
            stack.wait()


def test_a_part_that_dies_is_not_waited_for(tmp_path: Path, program):
    stack = stack_in(tmp_path)
    with stack.running():
        stack.start("dying", program("dying", "raise ValueError"))
        with pytest.raises(StackFailed, match="status 1"):
            stack.wait_until_ready("dying", "http://127.0.0.1:1/")


def test_a_command_that_fails_is_reported_with_its_output(tmp_path: Path, program):
    stack = stack_in(tmp_path)
    with pytest.raises(StackFailed, match=r"`wrong --all` must succeed(.|\n)*KeyError"):
        stack.run("deploy", program("wrong", "raise KeyError") + " --all")


def test_stopping_includes_grandchildren_in_their_own_sessions(tmp_path: Path, program):
    source = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
open("child", "w").write(str(child.pid))
time.sleep(600)
"""
    stack = stack_in(tmp_path)
    with stack.running():
        stack.start("parent", program("parent", source))
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            time.sleep(0.05)
        child = int((tmp_path / "child").read_text())
        assert alive(child)
    while alive(child):  # until its new parent has reaped it
        time.sleep(0.05)


def wait_for(condition, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


@pytest.fixture
def killed_up(tmp_path: Path, program):
    """The process of a running stack with one part, whose child has its own session."""
    child = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
    )
    program("parent", f"{child}; {SLEEP}")
    holder = f"""
from pathlib import Path
from dml import processes, up
folder = Path({str(tmp_path)!r})
stack = up.Stack(folder, folder, {{"PYTHONPATH": {PYTHONPATH!r}}}, grace_s=5)
with stack.running():
    stack.start("parent", "parent")
    stack.wait()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", holder],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: sorted(p.part for p in processes.find(tmp_path)) == ["guard", "parent", "parent"])
    yield process
    process.kill()
    process.wait()
    processes.stop(tmp_path, 0.0)


def test_nothing_outlives_a_killed_dml_up(tmp_path: Path, killed_up):
    killed_up.kill()
    wait_for(lambda: processes.find(tmp_path) == [])


def test_a_killed_part_ends_all_and_its_orphans_too(tmp_path: Path, killed_up):
    parent = min(p.pid for p in processes.find(tmp_path) if p.part == "parent")
    os.kill(parent, signal.SIGKILL)
    assert killed_up.wait(30) == 1
    assert processes.find(tmp_path) == []


def test_the_next_start_stops_leftovers_if_the_guard_was_killed_too(tmp_path: Path, killed_up, capsys):
    guard = next(p.pid for p in processes.find(tmp_path) if p.part == "guard")
    killed_up.send_signal(signal.SIGSTOP)
    os.kill(guard, signal.SIGKILL)
    killed_up.kill()
    killed_up.wait()
    wait_for(lambda: [p.part for p in processes.find(tmp_path)] == ["parent", "parent"])
    stack_in(tmp_path).stop_leftovers()
    assert processes.find(tmp_path) == []
    assert "left by a killed `dml up` of this store: parent (pid" in capsys.readouterr().err


def test_processes_of_another_folder_are_left_alone(tmp_path: Path, killed_up):
    processes.stop(tmp_path.with_name(tmp_path.name + "-2"), 0.0)
    processes.stop(tmp_path.parent, 0.0)
    assert len(processes.find(tmp_path)) == 3


def test_processes_are_listed_alike_without_proc(tmp_path: Path, killed_up):
    assert sorted(processes.find_by_ps(tmp_path)) == sorted(processes.find_by_proc(tmp_path))


def test_a_second_start_is_refused_with_the_running_stack(tmp_path: Path):
    addresses = StackAddresses(
        PREFECT_API_URL="http://127.0.0.1:4200/api",
        MLFLOW_TRACKING_URI="http://127.0.0.1:5000",
        DML_STORE=str(tmp_path),
        logs=str(tmp_path / "logs"),
    )
    assert up.running_stack(str(tmp_path)) is None
    with up._exclusive_stack(str(tmp_path), tmp_path, addresses):
        running = up.running_stack(str(tmp_path))
        assert running is not None
        assert (running.pid, running.addresses) == (os.getpid(), addresses)
        with pytest.raises(InvalidSetting, match=rf"pid {os.getpid()}, since 20.*http://127.0.0.1:4200"):
            up.run_local_stack(str(tmp_path), announce=up.print_addresses)
    assert up.running_stack(str(tmp_path)) is None


def test_addresses_are_quoted_for_a_shell():
    folder = "/a folder/with 'quotes' & $HOME"
    printed = subprocess.run(
        ["bash", "-c", up.export_lines({"DML_STORE": folder}) + '; printf %s "$DML_STORE"'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == folder


def test_a_part_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path, program):
    source = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('deaf', 'w'); {SLEEP}"
    stack = up.Stack(tmp_path, tmp_path, {"PYTHONPATH": PYTHONPATH}, grace_s=0.5)
    start = time.monotonic()
    with stack.running():
        stack.start("deaf", program("deaf", source))
        while not (tmp_path / "deaf").exists():
            time.sleep(0.05)
    assert time.monotonic() - start < 200, "it would sleep for 600 s"


def test_sigterm_ends_the_body_like_ctrl_c():
    former = signal.getsignal(signal.SIGTERM)
    with up._stopped_by_signals(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is former


def test_the_parts_run_with_the_same_python(tmp_path: Path, program):
    stack = stack_in(tmp_path)
    stack.run("which", program("which", "import sys; print(sys.executable)"))
    assert (tmp_path / "logs" / "which.log").read_text().strip() == sys.executable

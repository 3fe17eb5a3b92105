"""The parts of `dml up` that need no server; the whole is tests/flows/test_server.py."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from dml import up
from dml.errors import InvalidSetting

SLEEP = "import time; time.sleep(600)"


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
    return up.Stack(folder, folder / "logs", {"GREETING": "hello"})


def test_a_port_in_use_is_the_users_to_free(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind((up.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSetting, match=f"Port {port} must be free.*--prefect-port"):
            up.run_local_stack(str(tmp_path), prefect_port=port)


def test_a_part_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path, program):
    stack = stack_in(tmp_path)
    source = "import os, sys; print(os.environ['GREETING'], 'and goodbye'); sys.exit(3)"
    with stack.running():
        stack.start("dying", program("dying", source))
        with pytest.raises(RuntimeError, match=r"dying must keep running.*status 3(.|\n)*hello and goodbye"):
            stack.hold()


def test_a_part_that_dies_is_not_waited_for(tmp_path: Path, program):
    stack = stack_in(tmp_path)
    with stack.running():
        stack.start("dying", program("dying", "raise ValueError"))
        with pytest.raises(RuntimeError, match="status 1"):
            stack.wait_until_ready("dying", "http://127.0.0.1:1/")


def test_a_command_that_fails_says_so_with_its_output(tmp_path: Path, program):
    stack = stack_in(tmp_path)
    with pytest.raises(RuntimeError, match=r"`wrong --all` must succeed(.|\n)*KeyError"):
        stack.do("deploy", program("wrong", "raise KeyError") + " --all")


def test_stopping_takes_the_grandchildren_in_their_own_sessions_too(tmp_path: Path, program):
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
    while alive(child):  # until its new parent has taken note
        time.sleep(0.05)


def test_a_part_that_ignores_sigterm_is_killed_after_the_grace(
    tmp_path: Path, program, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(up, "STOP_GRACE_S", 0.5)
    source = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('deaf', 'w'); {SLEEP}"
    stack = stack_in(tmp_path)
    start = time.monotonic()
    with stack.running():
        stack.start("deaf", program("deaf", source))
        while not (tmp_path / "deaf").exists():
            time.sleep(0.05)
    assert time.monotonic() - start < 30


def test_sigterm_ends_the_body_like_ctrl_c():
    former = signal.getsignal(signal.SIGTERM)
    with up._stopped_by_signals(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is former


def test_the_python_that_runs_the_parts_is_ours(tmp_path: Path, program):
    stack = stack_in(tmp_path)
    stack.do("which", program("which", "import sys; print(sys.executable)"))
    assert (tmp_path / "logs" / "which.log").read_text().strip() == sys.executable

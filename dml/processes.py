"""The processes of one local stack, marked by an environment variable, listed and stopped together.

A process inherits its environment from its parent, at any depth and in any session: a worker, its flow runs
and their Ray processes. So all of them are listed, also after their parents were killed, and no other process
is.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MARK = "DML_UP"
STOPPED_LAST = ("prefect", "mlflow")
"""Parts that are stopped after all others, in this order: the others report to them while they stop."""
_POLL_S = 0.1
_PROC = Path("/proc")


class Process(NamedTuple):
    """A marked process."""

    pid: int
    part: str


def mark(part: str, folder: Path) -> dict[str, str]:
    """The environment variable that marks a process and its descendants as a part of a folder's stack."""
    return {MARK: f"{part}:{folder}"}


def find(folder: Path) -> list[Process]:
    """Every running process of a folder's stack, without this one."""
    members = find_by_proc(folder) if _PROC.joinpath("self", "environ").exists() else find_by_ps(folder)
    return [process for process in members if process.pid != os.getpid()]


def find_by_proc(folder: Path) -> list[Process]:
    """The marked processes, on Linux."""
    members = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            part, _, stack_folder = environment(int(entry.name)).get(MARK, "").partition(":")
            if stack_folder == str(folder):
                members.append(Process(int(entry.name), part))
    return members


def find_by_ps(folder: Path) -> list[Process]:
    """The marked processes, on any Unix."""
    listing = subprocess.run(
        ["ps", "axeww", "-o", "pid=,command="], capture_output=True, text=True, errors="replace", check=True
    ).stdout
    pattern = re.compile(rf"^\s*(\d+) .*?\s{MARK}=(\w+):{re.escape(str(folder))}(?:\s|$)", re.MULTILINE)
    return [Process(int(pid), part) for pid, part in pattern.findall(listing)]


def environment(pid: int) -> Mapping[str, str]:
    """The variables a process was started with; empty if they cannot be read or the process has ended."""
    try:
        content = _PROC.joinpath(str(pid), "environ").read_bytes()
    except OSError:
        return {}
    pairs = (os.fsdecode(item).partition("=") for item in content.split(b"\0"))
    return {name: value for name, _, value in pairs}


def command_line(pid: int) -> str:
    """The command line of a process; empty if it cannot be read."""
    try:
        content = _PROC.joinpath(str(pid), "cmdline").read_bytes()
    except OSError:
        return ""
    return " ".join(os.fsdecode(content).split("\0")).strip()


def listener(port: int) -> int | None:
    """The id of the process that listens on a TCP port of this machine; None if it cannot be determined."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in _PROC.joinpath("net", table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:  # LISTEN
                    sockets.add(f"socket:[{columns[9]}]")
    for entry in _PROC.glob("[0-9]*") if sockets else ():
        with suppress(OSError):
            if any(os.readlink(file) in sockets for file in entry.joinpath("fd").iterdir()):
                return int(entry.name)
    return None


def stop(
    folder: Path, grace_s: float, *, spare: tuple[str, ...] = (), reap: Callable[[], object] = list
) -> None:
    """Stop every process of a folder's stack: SIGTERM, then SIGKILL after the grace period.

    Args:
        folder: the stack's folder.
        grace_s: grace period for all processes, in seconds.
        spare: parts that keep running.
        reap: called repeatedly, so that a parent can collect the exit status of its children.
    """
    deadline = time.monotonic() + grace_s
    try:
        signalled: set[int] = set()
        for number in range(len(STOPPED_LAST) + 1):
            later = STOPPED_LAST[number:]
            while remaining := [p for p in find(folder) if p.part not in (*spare, *later)]:
                _signal([p for p in remaining if p.pid not in signalled], signal.SIGTERM)
                signalled.update(p.pid for p in remaining)
                reap()
                if time.monotonic() > deadline:
                    return
                time.sleep(_POLL_S)
    except KeyboardInterrupt:
        pass  # a second Ctrl-C ends the grace period
    finally:
        while remaining := [p for p in find(folder) if p.part not in spare]:
            _signal(remaining, signal.SIGKILL)
            reap()
            time.sleep(_POLL_S)


def _signal(processes: list[Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def guard() -> None:
    """Wait until the other end of standard input is closed, then stop the stack.

    The operating system closes it also when the process that holds it is killed.
    """
    folder, grace_s = Path(sys.argv[1]), float(sys.argv[2])
    sys.stdin.buffer.read()
    stop(folder, grace_s, spare=("guard",))


if __name__ == "__main__":
    guard()

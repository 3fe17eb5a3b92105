"""Processes that belong together, found by a variable in their environment, and stopped together.

A process passes its environment on to all it starts, however deep and in whatever session: a worker's flow
runs, and their Ray. So all of them are found, also when their parents were killed, and nobody else's are.
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
LAST = ("prefect", "mlflow")
"""Parts that end after all others, in this order: what others report to while they end."""
_POLL_S = 0.1
_PROC = Path("/proc")


class Process(NamedTuple):
    """A marked process."""

    pid: int
    part: str


def mark(part: str, folder: Path) -> dict[str, str]:
    """The variable that marks a process, and all that it starts, as a part of a folder's stack."""
    return {MARK: f"{part}:{folder}"}


def find(folder: Path) -> list[Process]:
    """Every living process of a folder's stack, this one apart."""
    found = find_by_proc(folder) if _PROC.joinpath("self", "environ").exists() else find_by_ps(folder)
    return [process for process in found if process.pid != os.getpid()]


def find_by_proc(folder: Path) -> list[Process]:
    """Linux."""
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            part, _, where = environment(int(entry.name)).get(MARK, "").partition(":")
            if where == str(folder):
                found.append(Process(int(entry.name), part))
    return found


def find_by_ps(folder: Path) -> list[Process]:
    """Any other Unix."""
    listing = subprocess.run(
        ["ps", "axeww", "-o", "pid=,command="], capture_output=True, text=True, errors="replace", check=True
    ).stdout
    pattern = re.compile(rf"^\s*(\d+) .*?\s{MARK}=(\w+):{re.escape(str(folder))}(?:\s|$)", re.MULTILINE)
    return [Process(int(pid), part) for pid, part in pattern.findall(listing)]


def environment(pid: int) -> Mapping[str, str]:
    """The variables a process was started with; empty where they cannot be read, or it is no more."""
    try:
        content = _PROC.joinpath(str(pid), "environ").read_bytes()
    except OSError:
        return {}
    pairs = (os.fsdecode(item).partition("=") for item in content.split(b"\0"))
    return {name: value for name, _, value in pairs}


def command_of(pid: int) -> str:
    """The command line of a process; empty where it cannot be read."""
    try:
        content = _PROC.joinpath(str(pid), "cmdline").read_bytes()
    except OSError:
        return ""
    return " ".join(os.fsdecode(content).split("\0")).strip()


def listener(port: int) -> int | None:
    """The process that listens on a TCP port of this machine; None where that cannot be seen."""
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
    """End every process of a folder's stack: SIGTERM, and after the grace SIGKILL.

    Args:
        folder: the stack's.
        grace_s: seconds for all of them to end by themselves.
        spare: parts to leave alone.
        reap: called again and again; for a parent to take note of its children's end.
    """
    deadline = time.monotonic() + grace_s
    try:
        asked: set[int] = set()
        for number in range(len(LAST) + 1):
            later = LAST[number:]
            while left := [p for p in find(folder) if p.part not in (*spare, *later)]:
                _signal([p for p in left if p.pid not in asked], signal.SIGTERM)
                asked.update(p.pid for p in left)
                reap()
                if time.monotonic() > deadline:
                    return
                time.sleep(_POLL_S)
    except KeyboardInterrupt:
        pass  # the user does not grant the grace
    finally:
        while left := [p for p in find(folder) if p.part not in spare]:
            _signal(left, signal.SIGKILL)
            reap()
            time.sleep(_POLL_S)


def _signal(processes: list[Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def guard() -> None:
    """Wait until whoever holds the other end of standard input is no more, then stop the stack.

    That end is closed also when its holder was killed and could do nothing.
    """
    folder, grace_s = Path(sys.argv[1]), float(sys.argv[2])
    sys.stdin.buffer.read()
    stop(folder, grace_s, spare=("guard",))


if __name__ == "__main__":
    guard()

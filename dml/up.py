"""The whole stack on one machine: MLflow's server, Prefect's server, the deployments and a worker.

Everything it keeps lies in the store's local folder (Prefect's home and database, MLflow's database, the
logs), so nothing of it reaches the user's own Prefect profile, and the next start finds it all again.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dml.errors import InvalidSetting, MissingArtifact
from dml.settings import artifact_root, local_folder

HOST = "127.0.0.1"
WORK_POOL = "local-process"
ZOMBIES = "crash zombie runs"
START_TIMEOUT_S = 120.0
STOP_GRACE_S = 20.0
_POLL_S = 0.25
_TAIL_LINES = 20


def run_local_stack(
    store: str, *, prefect_port: int = 4200, mlflow_port: int = 5000, as_json: bool = False
) -> None:
    """Start the stack, print where it is, and hold it until Ctrl-C or SIGTERM; then stop all of it.

    Args:
        store: the store's absolute URI.
        prefect_port: of Prefect's server and pages.
        mlflow_port: of MLflow's server and pages.
        as_json: print the addresses as one JSON object.

    Raises:
        InvalidSetting: a port is taken.
        MissingArtifact: the project's folder with `prefect.yaml` is not there.
        RuntimeError: a part of the stack ended by itself, or was not ready in `START_TIMEOUT_S`.
    """
    _require_free(prefect_port, "--prefect-port")
    _require_free(mlflow_port, "--mlflow-port")
    project = _project_folder()
    folder = local_folder(store)
    prefect, mlflow = f"http://{HOST}:{prefect_port}", f"http://{HOST}:{mlflow_port}"
    addresses = {"PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow, "DML_STORE": store}
    stack = Stack(project, folder / "logs", {**addresses, **_own_variables(folder)})
    with _stopped_by_signals(), stack.running():
        try:
            stack.start("mlflow", _mlflow_server(store, folder, mlflow_port))
            stack.start("prefect", f"prefect server start --host {HOST} --port {prefect_port}")
            stack.wait_until_ready("mlflow", f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1")
            stack.wait_until_ready("prefect", f"{prefect}/api/ready")
            stack.do("deploy", f"prefect work-pool create {WORK_POOL} --type process --overwrite")
            stack.do("deploy", "prefect --no-prompt deploy --all")
            if not stack.succeeds("deploy", f"prefect automation inspect {shlex.quote(ZOMBIES)}"):
                stack.do("deploy", "prefect automation create --from-file infra/prefect/zombies.yaml")
            stack.start("worker", f"prefect worker start --pool {WORK_POOL} --type process")
            if as_json:
                print(json.dumps({**addresses, "logs": str(stack.logs)}), flush=True)
            else:
                _print_addresses(addresses, prefect, mlflow, stack.logs)
            stack.hold()
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)


@dataclass(frozen=True)
class Part:
    """A process of the stack, in a process group of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def require_alive(self) -> None:
        status = self.process.poll()
        if status is not None:
            raise RuntimeError(
                f"{self.name} must keep running; it ended with status {status}. {_end_of(self.log)}"
            )


class Stack:
    """The parts, started in order and stopped in the opposite one.

    Args:
        project: the folder the commands run in.
        logs: a folder; every part writes `NAME.log`.
        env: variables on top of our own.
    """

    def __init__(self, project: Path, logs: Path, env: Mapping[str, str]) -> None:
        self.project, self.logs = project, logs
        self._env = {**os.environ, **env}
        self._parts: list[Part] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: str) -> None:
        log = self.logs / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", *shlex.split(command)],
                cwd=self.project,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; we stop the parts in order
            )
        self._parts.append(Part(name, process, log))

    def do(self, name: str, command: str) -> None:
        """Run a command to its end, which must be a good one."""
        if not self.succeeds(name, command):
            raise RuntimeError(f"`{command}` must succeed. {_end_of(self.logs / f'{name}.log')}")

    def succeeds(self, name: str, command: str) -> bool:
        """Run a command to its end, whatever it is."""
        with (self.logs / f"{name}.log").open("ab") as stream:
            done = subprocess.run(
                [sys.executable, "-m", *shlex.split(command)],
                cwd=self.project,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        return done.returncode == 0

    def wait_until_ready(self, name: str, url: str) -> None:
        """Until a route of the API answers; a health page alone can be green while clients are refused."""
        part = next(part for part in self._parts if part.name == name)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(url):
            part.require_alive()
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{name} must answer at {url} within {START_TIMEOUT_S:.0f} s. {_end_of(part.log)}"
                )
            time.sleep(_POLL_S)

    def hold(self) -> None:
        """As long as every part lives."""
        while True:
            for part in self._parts:
                part.require_alive()
            time.sleep(_POLL_S)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Whatever ends the body, nothing that was started here goes on."""
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        groups = [_groups_below(part.process.pid) for part in self._parts]
        deadline = time.monotonic() + STOP_GRACE_S
        try:
            for part, below in zip(reversed(self._parts), reversed(groups), strict=True):
                _signal_all(below, signal.SIGTERM)
                part.process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass  # the grace is over, or the user does not grant it
        finally:
            for part, below in zip(self._parts, groups, strict=True):
                _signal_all(below, signal.SIGKILL)
                part.process.wait()


def _groups_below(root: int) -> set[int]:
    """The process groups of a process and all its descendants: each flow run is a group of its own."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,pgid="], capture_output=True, text=True, check=True
    ).stdout
    rows = [tuple(int(column) for column in line.split()) for line in listing.splitlines()]
    found, new = {root}, {root}
    while new:
        new = {pid for pid, parent, _ in rows if parent in new} - found
        found |= new
    return {group for pid, _, group in rows if pid in found}


def _signal_all(groups: Iterable[int], number: signal.Signals) -> None:
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM interrupt; also where a shell started us in the background, deaf to SIGINT."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in former:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InvalidSetting(
                f"Port {port} must be free; {error.strerror}. Stop what listens there, or give another with "
                f"{option}."
            ) from error


def _project_folder() -> Path:
    folder = Path(__file__).parents[1]
    if not (folder / "prefect.yaml").exists():
        raise MissingArtifact(
            f"The deployments are described in the project's prefect.yaml; there is none in {folder}. "
            "Install the project from a clone (`make setup`)."
        )
    return folder


def _mlflow_server(store: str, folder: Path, port: int) -> str:
    database, artifacts = f"sqlite:///{folder / 'mlflow.db'}", artifact_root(store)
    return (
        f"mlflow server --host {HOST} --port {port} --workers 1 "
        f"--backend-store-uri {shlex.quote(database)} "
        # Artefacts by their own address: models made here load without this server too.
        f"--no-serve-artifacts --default-artifact-root {shlex.quote(artifacts)}"
    )


def _own_variables(folder: Path) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # a user waits for it; the default is 10
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job runner takes 0.6 GB and is not used
        "PREFECT_LOGGING_EXTRA_LOGGERS": "dml",  # training's progress in the run's own log
        "PYTHONUNBUFFERED": "1",  # logs are read while they grow
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join([f"The end of its log, {log}:", *lines])


def _print_addresses(addresses: Mapping[str, str], prefect: str, mlflow: str, logs: Path) -> None:
    print(f"Prefect  {prefect}\nMLflow   {mlflow}\nlogs     {logs}\n\nIn another terminal:\n")
    for name, value in addresses.items():
        print(f"export {name}={shlex.quote(value)}")
    print("prefect deployment run train-flow/default --watch\n\nCtrl-C stops it all.", flush=True)

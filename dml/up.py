"""The stack on one machine: MLflow's server, Prefect's server, the deployments and a worker.

All its files are in the store's local folder (Prefect's home and database, MLflow's database, the logs). So
it does not touch the user's Prefect profile, and the next start continues with the same data.
"""

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dml import processes
from dml.errors import InvalidSetting, MissingArtifact, StackFailed
from dml.progress import Ticker, begin
from dml.registry.connection import connect
from dml.reports import Result, StackAddresses
from dml.settings import artifact_root, local_folder, store_tracking_uri
from dml.storage import is_remote

HOST = "127.0.0.1"
WORK_POOL = "local-process"
ZOMBIES = "crash zombie runs"
START_TIMEOUT_S = 120.0
STOP_GRACE_S = 20.0
GUARD = "guard"
LOCK, STATE, LOGS = "up.lock", "up.json", "logs"
_GUARD_GRACE_S = 5.0
_POLL_S = 0.25
_TAIL_LINES = 20
_LAST_PORT = 65_535


def run_local_stack(
    store: str,
    *,
    prefect_port: int = 4200,
    mlflow_port: int = 5000,
    announce: Callable[[StackAddresses], None],
) -> StackAddresses:
    """Start the stack, announce its addresses, wait for Ctrl-C or SIGTERM, then stop it.

    Args:
        store: the store's absolute URI.
        prefect_port: port of Prefect's server and pages.
        mlflow_port: port of MLflow's server and pages.
        announce: called once, when all parts are ready.

    Returns:
        The addresses.

    Raises:
        InvalidSetting: a port is in use, invalid, or the same for both servers.
        MissingArtifact: the project's folder with `prefect.yaml` does not exist.
        StackFailed: a part of the stack ended, or was not ready in `START_TIMEOUT_S`.
    """
    _require_ports(prefect_port, mlflow_port)
    project = _project_folder()
    folder = local_folder(store)
    prefect, mlflow = f"http://{HOST}:{prefect_port}", f"http://{HOST}:{mlflow_port}"
    addresses = StackAddresses(
        PREFECT_API_URL=f"{prefect}/api",
        MLFLOW_TRACKING_URI=mlflow,
        DML_STORE=store,
        logs=str(folder / LOGS),
    )
    stack = Stack(project, folder, {**addresses.variables, **_server_variables(folder)})
    with _stopped_by_signals(), _exclusive_stack(store, folder, addresses):
        with Ticker("up: stopping leftover processes"):
            stack.stop_leftovers()
        _require_free(prefect_port, "--prefect-port")
        _require_free(mlflow_port, "--mlflow-port")
        with stack.running():
            try:
                with Ticker("up"):
                    _start(stack, store, prefect_port, mlflow_port)
                announce(addresses)
                stack.wait()
            except KeyboardInterrupt:
                print("stopping", file=sys.stderr)
    return addresses


def _start(stack: "Stack", store: str, prefect_port: int, mlflow_port: int) -> None:
    """Start the parts in order; reports every few seconds which one it is waiting for."""
    begin("creating MLflow's database")
    connect(store_tracking_uri(store))  # creates the database and checks its addresses
    stack.start("mlflow", _mlflow_server(store, mlflow_port))
    stack.start("prefect", f"prefect server start --host {HOST} --port {prefect_port}")
    begin("waiting for MLflow and Prefect")
    stack.wait_until_ready(
        "mlflow", f"http://{HOST}:{mlflow_port}/api/2.0/mlflow/experiments/search?max_results=1"
    )
    begin("waiting for Prefect")
    stack.wait_until_ready("prefect", f"http://{HOST}:{prefect_port}/api/ready")
    begin("creating the deployments")
    stack.run("deploy", f"prefect work-pool create {WORK_POOL} --type process --overwrite")
    stack.run("deploy", "prefect --no-prompt deploy --all")
    if not stack.succeeds("deploy", f"prefect automation inspect {shlex.quote(ZOMBIES)}"):
        stack.run("deploy", "prefect automation create --from-file infra/prefect/zombies.yaml")
    begin("applying the store's schedules")
    if not stack.succeeds("schedules", f"dml.cli schedule --store {shlex.quote(store)}"):
        log_tail = _log_tail(stack.logs / "schedules.log")
        print(f"not every schedule could be applied. {log_tail}", file=sys.stderr)
    stack.start("worker", f"prefect worker start --pool {WORK_POOL} --type process")


class Running(Result):
    """A running `dml up`."""

    pid: int
    since: str
    addresses: StackAddresses

    def __str__(self) -> str:
        return f"`dml up` of {self.addresses.DML_STORE}, pid {self.pid}, since {self.since}"


def running_stack(store: str) -> Running | None:
    """The `dml up` that is running for a store on this machine, or None.

    Args:
        store: the store's absolute URI.
    """
    # For a local store, `local_folder` would create the store.
    return _running_in(local_folder(store) if is_remote(store) else Path(store))


def _running_in(folder: Path) -> Running | None:
    try:
        with (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BlockingIOError:
        return Running.model_validate_json((folder / STATE).read_text())
    return None


@contextmanager
def _exclusive_stack(store: str, folder: Path, addresses: StackAddresses) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when this process ends, and record its holder."""
    with (folder / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            running = _running_in(folder)
            raise InvalidSetting(
                f"Only one stack must run for a store; {running or 'one of ' + store} is running, with its "
                f"pages at {running.addresses.PREFECT_API_URL.removesuffix('/api') if running else '?'}. "
                'Use it from any terminal (`eval "$(dml env)"`), or stop it with Ctrl-C in its terminal'
                f"{f' or `kill {running.pid}`' if running else ''}."
            ) from None
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        running = Running(pid=os.getpid(), since=since, addresses=addresses)
        (folder / STATE).write_text(running.model_dump_json())
        yield


@dataclass(frozen=True)
class Part:
    """A process of the stack, in its own process group."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def require_alive(self) -> None:
        status = self.process.poll()
        if status is not None:
            raise StackFailed(
                f"{self.name} must keep running; it {_exit_description(status)}. The stack is stopped. "
                "Start it again (`dml up`); an interrupted run continues from its checkpoint when it is run "
                "again. "
                f"{_log_tail(self.log)}"
            )


def _exit_description(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class Stack:
    """The processes of the stack, started in order and stopped in reverse order.

    Args:
        project: working folder of the commands.
        folder: folder of the stack's files; it also marks the stack's processes.
        env: environment variables in addition to this process's.
        grace_s: seconds between SIGTERM and SIGKILL when the stack is stopped.
    """

    def __init__(
        self, project: Path, folder: Path, env: Mapping[str, str], *, grace_s: float = STOP_GRACE_S
    ) -> None:
        self.project, self.folder, self.logs = project, folder, folder / LOGS
        self._env = {**os.environ, **env}
        self._grace_s = grace_s
        self._parts: list[Part] = []
        self.logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: str) -> None:
        log = self.logs / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", *shlex.split(command)],
                cwd=self.project,
                env={**self._env, **processes.mark(name, self.folder)},
                stdin=subprocess.PIPE if name == GUARD else subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # only this process gets Ctrl-C; it stops the parts in order
            )
        self._parts.append(Part(name, process, log))

    def run(self, name: str, command: str) -> None:
        """Run a command; raises StackFailed if it fails."""
        if not self.succeeds(name, command):
            raise StackFailed(f"`{command}` must succeed. {_log_tail(self.logs / f'{name}.log')}")

    def succeeds(self, name: str, command: str) -> bool:
        """Run a command; returns whether it succeeded."""
        with (self.logs / f"{name}.log").open("ab") as stream:
            completed = subprocess.run(
                [sys.executable, "-m", *shlex.split(command)],
                cwd=self.project,
                env={**self._env, **processes.mark(name, self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        return completed.returncode == 0

    def wait_until_ready(self, name: str, url: str) -> None:
        """Wait until a route of the API answers; a health page can be green while clients are refused."""
        part = next(part for part in self._parts if part.name == name)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(url):
            part.require_alive()
            if time.monotonic() > deadline:
                raise StackFailed(
                    f"{name} must answer at {url} within {START_TIMEOUT_S:.0f} s. {_log_tail(part.log)}"
                )
            time.sleep(_POLL_S)

    def wait(self) -> None:
        """Wait; raises StackFailed when a part ends."""
        while True:
            for part in self._parts:
                part.require_alive()
            time.sleep(_POLL_S)

    def stop_leftovers(self) -> None:
        """Stop the processes of an earlier stack of this folder whose `dml up` and guard were killed."""
        leftovers = processes.find(self.folder)
        if leftovers:
            names = ", ".join(sorted({f"{process.part} (pid {process.pid})" for process in leftovers}))
            print(f"stopping processes left by a killed `dml up` of this store: {names}", file=sys.stderr)
            processes.stop(self.folder, self._grace_s)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Stop every part when the body ends, fails, or this process is killed."""
        grace_s = min(self._grace_s, _GUARD_GRACE_S)
        self.start(GUARD, shlex.join(["dml.processes", str(self.folder), str(grace_s)]))
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        with Ticker("up: stopping"):
            processes.stop(self.folder, self._grace_s, spare=(GUARD,), reap=self._reap)
            for part in self._parts:
                if part.process.stdin is not None:
                    part.process.stdin.close()  # ends the guard, which has nothing left to stop
                part.process.wait()

    def _reap(self) -> None:
        for part in self._parts:
            part.process.poll()


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on these signals; a shell's background process otherwise ignores SIGINT."""
    former = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in former:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _require_ports(prefect_port: int, mlflow_port: int) -> None:
    for option, port in (("--prefect-port", prefect_port), ("--mlflow-port", mlflow_port)):
        if not 1 <= port <= _LAST_PORT:
            raise InvalidSetting(f"{option} must be a port, 1 to {_LAST_PORT}; got {port}. Give another.")
    if prefect_port == mlflow_port:
        raise InvalidSetting(
            f"--prefect-port and --mlflow-port must differ; both are {mlflow_port}. Change one of them."
        )


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InvalidSetting(
                f"Port {port} must be free; {_listener_description(port) or error.strerror}. "
                f"Stop that process, or give another port with {option}."
            ) from error


def _listener_description(port: int) -> str:
    """The process that listens on a port, as text; empty if it cannot be determined."""
    pid = processes.listener(port)
    if pid is None:
        return ""
    folder = processes.environment(pid).get(processes.MARK, "").partition(":")[2]
    stack = _running_in(Path(folder)) if folder else None
    return f"pid {pid} listens on it ({stack or processes.command_line(pid) or 'its command cannot be read'})"


def _project_folder() -> Path:
    folder = Path(__file__).parents[1]
    if not (folder / "prefect.yaml").exists():
        raise MissingArtifact(
            f"The project's prefect.yaml must exist, since it describes the deployments; {folder} has none. "
            "Install the project from a clone (`make setup`)."
        )
    return folder


def _mlflow_server(store: str, port: int) -> str:
    database, artifacts = store_tracking_uri(store), artifact_root(store)
    return (
        f"mlflow server --host {HOST} --port {port} --workers 1 "
        f"--backend-store-uri {shlex.quote(database)} "
        # Artefacts keep their own URIs, so that models load also without this server.
        f"--no-serve-artifacts --default-artifact-root {shlex.quote(artifacts)}"
    )


def _server_variables(folder: Path) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # users wait for it; the default is 10
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job runner takes 0.6 GB and is not used
        # So that `--watch` shows the run's log, including the reason of a failure.
        "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
        "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "dml",  # training progress in the run's log
        "PYTHONUNBUFFERED": "1",  # logs are read while they are written
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _log_tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join([f"The end of its log, {log}:", *lines])


def print_addresses(addresses: StackAddresses) -> None:
    """Say where the stack is reached, and how another terminal uses it."""
    prefect, mlflow = addresses.PREFECT_API_URL.removesuffix("/api"), addresses.MLFLOW_TRACKING_URI
    print(f"Prefect  {prefect}\nMLflow   {mlflow}\nlogs     {addresses.logs}\n\nIn another terminal:\n")
    print(export_lines(addresses.variables))
    print(
        "prefect deployment run train-flow/default --watch -p dataset=NAME\n\nCtrl-C stops the stack.",
        flush=True,
    )


def export_lines(variables: Mapping[str, str]) -> str:
    """Shell commands that export these variables."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())

"""The whole stack on one machine: MLflow's server, Prefect's server, the deployments and a worker.

Everything it keeps lies in the store's local folder (Prefect's home and database, MLflow's database, the
logs), so nothing of it reaches the user's own Prefect profile, and the next start finds it all again.
"""

import fcntl
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from dml import processes
from dml.errors import InvalidSetting, MissingArtifact, StackFailed
from dml.progress import Ticker, begin
from dml.registry.connection import connect
from dml.settings import artifact_root, local_folder, own_tracking_uri
from dml.storage import is_remote

HOST = "127.0.0.1"
WORK_POOL = "local-process"
ZOMBIES = "crash zombie runs"
START_TIMEOUT_S = 120.0
STOP_GRACE_S = 20.0
GUARD = "guard"
LOCK, STATE = "up.lock", "up.json"
_GUARD_GRACE_S = 5.0
_POLL_S = 0.25
_TAIL_LINES = 20
_LAST_PORT = 65_535


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
        InvalidSetting: a port is taken, or can be none, or is asked for twice.
        MissingArtifact: the project's folder with `prefect.yaml` is not there.
        StackFailed: a part of the stack ended by itself, or was not ready in `START_TIMEOUT_S`.
    """
    _require_ports(prefect_port, mlflow_port)
    project = _project_folder()
    folder = local_folder(store)
    prefect, mlflow = f"http://{HOST}:{prefect_port}", f"http://{HOST}:{mlflow_port}"
    addresses = {"PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow, "DML_STORE": store}
    stack = Stack(project, folder, {**addresses, **_own_variables(folder)})
    with _stopped_by_signals(), _only_one(store, folder, addresses):
        with Ticker("up: stopping what is left"):
            stack.stop_leftovers()
        _require_free(prefect_port, "--prefect-port")
        _require_free(mlflow_port, "--mlflow-port")
        with stack.running():
            try:
                with Ticker("up"):
                    _start(stack, store, prefect_port, mlflow_port)
                if as_json:
                    print(json.dumps({**addresses, "logs": str(stack.logs)}), flush=True)
                else:
                    _print_addresses(addresses, prefect, mlflow, stack.logs)
                stack.hold()
            except KeyboardInterrupt:
                print("stopping", file=sys.stderr)


def _start(stack: "Stack", store: str, prefect_port: int, mlflow_port: int) -> None:
    """Start the parts in order; says every few seconds which one it waits for."""
    begin("making MLflow's database")
    connect(own_tracking_uri(store))  # it is there, and its addresses are right
    stack.start("mlflow", _mlflow_server(store, mlflow_port))
    stack.start("prefect", f"prefect server start --host {HOST} --port {prefect_port}")
    begin("waiting for MLflow and Prefect")
    stack.wait_until_ready(
        "mlflow", f"http://{HOST}:{mlflow_port}/api/2.0/mlflow/experiments/search?max_results=1"
    )
    begin("waiting for Prefect")
    stack.wait_until_ready("prefect", f"http://{HOST}:{prefect_port}/api/ready")
    begin("making the deployments")
    stack.do("deploy", f"prefect work-pool create {WORK_POOL} --type process --overwrite")
    stack.do("deploy", "prefect --no-prompt deploy --all")
    if not stack.succeeds("deploy", f"prefect automation inspect {shlex.quote(ZOMBIES)}"):
        stack.do("deploy", "prefect automation create --from-file infra/prefect/zombies.yaml")
    begin("following the store's schedules")
    if not stack.succeeds("schedules", f"dml.cli schedule --store {shlex.quote(store)}"):
        said = _end_of(stack.logs / "schedules.log")
        print(f"not every schedule is followed. {said}", file=sys.stderr)
    stack.start("worker", f"prefect worker start --pool {WORK_POOL} --type process")


@dataclass(frozen=True)
class Running:
    """A `dml up` that runs now."""

    pid: int
    since: str
    addresses: dict[str, str]

    def __str__(self) -> str:
        return f"`dml up` of {self.addresses['DML_STORE']}, pid {self.pid}, since {self.since}"


def running_stack(store: str) -> Running | None:
    """The `dml up` that runs for a store on this machine; None: there is none.

    Args:
        store: the store's absolute URI.
    """
    # Asking makes no store.
    return _running_in(local_folder(store) if is_remote(store) else Path(store))


def _running_in(folder: Path) -> Running | None:
    try:
        with (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BlockingIOError:
        return Running(**json.loads((folder / STATE).read_text()))
    return None


@contextmanager
def _only_one(store: str, folder: Path, addresses: Mapping[str, str]) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process however it ends, and say who holds it."""
    with (folder / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            running = _running_in(folder)
            raise InvalidSetting(
                f"One stack runs for a store; {running or 'one of ' + store} runs already, with its pages at "
                f"{running.addresses['PREFECT_API_URL'].removesuffix('/api') if running else '?'}. "
                'Use it from any terminal (`eval "$(dml env)"`), or stop it with Ctrl-C there'
                f"{f' or `kill {running.pid}`' if running else ''}."
            ) from None
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        (folder / STATE).write_text(json.dumps(asdict(Running(os.getpid(), since, dict(addresses)))))
        yield


@dataclass(frozen=True)
class Part:
    """A process of the stack, in a process group of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def require_alive(self) -> None:
        status = self.process.poll()
        if status is not None:
            raise StackFailed(
                f"{self.name} must keep running; it {_how_it_ended(status)}. The rest is stopped. "
                "Start it again (`dml up`): what was under way goes on from its checkpoint when run again. "
                f"{_end_of(self.log)}"
            )


def _how_it_ended(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class Stack:
    """The parts, started in order and stopped in the opposite one.

    Args:
        project: the folder the commands run in.
        folder: what the stack keeps lies here; its processes are found by it.
        env: variables on top of our own.
        grace_s: seconds for the parts to end by themselves when they are stopped.
    """

    def __init__(
        self, project: Path, folder: Path, env: Mapping[str, str], *, grace_s: float = STOP_GRACE_S
    ) -> None:
        self.project, self.folder, self.logs = project, folder, folder / "logs"
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
                start_new_session=True,  # Ctrl-C reaches us alone; we stop the parts in order
            )
        self._parts.append(Part(name, process, log))

    def do(self, name: str, command: str) -> None:
        """Run a command to its end, which must be a good one."""
        if not self.succeeds(name, command):
            raise StackFailed(f"`{command}` must succeed. {_end_of(self.logs / f'{name}.log')}")

    def succeeds(self, name: str, command: str) -> bool:
        """Run a command to its end, whatever it is."""
        with (self.logs / f"{name}.log").open("ab") as stream:
            done = subprocess.run(
                [sys.executable, "-m", *shlex.split(command)],
                cwd=self.project,
                env={**self._env, **processes.mark(name, self.folder)},
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
                raise StackFailed(
                    f"{name} must answer at {url} within {START_TIMEOUT_S:.0f} s. {_end_of(part.log)}"
                )
            time.sleep(_POLL_S)

    def hold(self) -> None:
        """As long as every part lives."""
        while True:
            for part in self._parts:
                part.require_alive()
            time.sleep(_POLL_S)

    def stop_leftovers(self) -> None:
        """Stop what another stack of this folder has left, whose `dml up` and guard were killed."""
        left = processes.find(self.folder)
        if left:
            names = ", ".join(sorted({f"{process.part} (pid {process.pid})" for process in left}))
            print(f"stopping what a killed `dml up` of this store has left: {names}", file=sys.stderr)
            processes.stop(self.folder, self._grace_s)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Whatever ends the body, or kills this process, nothing that was started here goes on."""
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
                    part.process.stdin.close()  # the guard finds nothing left to stop
                part.process.wait()

    def _reap(self) -> None:
        for part in self._parts:
            part.process.poll()


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """These signals interrupt; also SIGINT where a shell started us in the background, deaf to it."""
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
            f"--prefect-port and --mlflow-port must differ; both are {mlflow_port}. Give one of them another."
        )


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InvalidSetting(
                f"Port {port} must be free; {_who_listens(port) or error.strerror}. Stop what listens there, "
                f"or give another with {option}."
            ) from error


def _who_listens(port: int) -> str:
    """Who holds a port, as far as this machine shows it; empty: it does not."""
    pid = processes.listener(port)
    if pid is None:
        return ""
    folder = processes.environment(pid).get(processes.MARK, "").partition(":")[2]
    stack = _running_in(Path(folder)) if folder else None
    return f"pid {pid} listens there ({stack or processes.command_of(pid) or 'its command cannot be read'})"


def _project_folder() -> Path:
    folder = Path(__file__).parents[1]
    if not (folder / "prefect.yaml").exists():
        raise MissingArtifact(
            f"The deployments are described in the project's prefect.yaml; there is none in {folder}. "
            "Install the project from a clone (`make setup`)."
        )
    return folder


def _mlflow_server(store: str, port: int) -> str:
    database, artifacts = own_tracking_uri(store), artifact_root(store)
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
        # `--watch` shows the run's log, and with it why a run failed.
        "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
        "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
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
    print(export_lines(addresses))
    print(
        "prefect deployment run train-flow/default --watch -p dataset=NAME\n\nCtrl-C stops it all.",
        flush=True,
    )


def export_lines(variables: Mapping[str, str]) -> str:
    """What a shell must read to have these variables."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())

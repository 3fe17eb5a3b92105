"""Each metric reaches MLflow once: in normal operation, after an outage, after the process was killed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dml.config import IngestConfig
from dml.registry.connection import connect
from dml.registry.journal import Journal
from dml.settings import tracking_uri
from flows.ingest import ingest_flow
from tests.ports import free_port
from tests.registry.parts import Step, new_run, python

STEPS = 40


def history(uri: str, run_id: str, name: str = "loss") -> list[tuple[int, float]]:
    return [(entry.step, entry.value) for entry in connect(uri).get_metric_history(run_id, name)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


def test_a_step_repeated_after_a_kill_is_logged_once(store):
    uri = tracking_uri(store)
    for steps in ((1, 2, 3), (2, 3, 4)):
        run = new_run(store, "again", "again")
        with run.recording():
            for step in steps:
                run(Step(step, loss=1 / step, rate=step * len(steps) + steps[0]))
    assert history(uri, run.id) == [(step, 1 / step) for step in (1, 2, 3, 4)]
    assert [step for step, _ in history(uri, run.id, "rate")] == [1, 2, 3, 4]


def test_unsent_metrics_of_a_killed_process_are_sent_when_a_run_starts(store):
    uri = tracking_uri(store)
    killed = new_run(store, "killed", "killed")
    Journal(Path(killed.journal), uri, killed.id)
    lines = [{"step": step, "timestamp_ms": 1000 + step, "metrics": {"loss": 0.5}} for step in range(2500)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Path(killed.journal).write_text(text[:80] + "\n" + text + '{"step": 2500, "times')
    new_run(store, "other", "other")
    assert len(history(uri, killed.id)) == 2500
    new_run(store, "other", "other")
    assert len(history(uri, killed.id)) == 2500


def test_a_half_written_line_loses_no_other_line(store):
    run = new_run(store, "half", "half")
    Path(run.journal).write_text('{"step": 1, "timest')
    with run.recording():
        run(Step(1, loss=0.5))
        run(Step(2, loss=0.25))
    assert history(run.tracking_uri, run.id) == [(1, 0.5), (2, 0.25)]


def test_nan_and_deleted_runs_raise_no_error(store):
    run = new_run(store, "deleted", "deleted")
    journal = Journal(Path(run.journal), run.tracking_uri, run.id)
    journal.append(1, {"loss": float("nan"), "rate": float("inf")})
    assert journal.flush(5)
    connect(run.tracking_uri).delete_run(run.id)
    journal.append(2, {"loss": 0.5})
    assert journal.close(5), "MLflow refuses it for good; it stays in the file"
    assert '"step": 2' in Path(run.journal).read_text()


def test_a_run_moved_to_another_experiment_keeps_its_curve(store):
    first = new_run(store, "first-name", "moved")
    with first.recording():
        first(Step(1, loss=0.5))
    second = new_run(store, "second-name", "moved")
    assert second.id != first.id
    with second.recording():
        pass
    assert history(second.tracking_uri, second.id) == [(1, 0.5)]


def fail_after_a_step(run):
    with run.recording():
        run(Step(1, loss=0.5))
        raise ZeroDivisionError


def test_an_error_is_not_delayed_where_mlflow_does_not_answer(store):
    run = replace(new_run(store, "alone", "alone"), tracking_uri=f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        fail_after_a_step(run)
    assert time.monotonic() - started < 10, "a run that ends well tries for ten"
    assert '"loss": 0.5' in Path(run.journal).read_text()


class Server:
    """A real MLflow server that can be killed and started again, with the same database and address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"http://127.0.0.1:{free_port()}"

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
                    *("--port", self.uri.rpartition(":")[2]),
                    *("--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"),
                    *("--default-artifact-root", str(self.folder / "artifacts"), "--no-serve-artifacts"),
                ],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self.answers, 240)

    def answers(self) -> bool:
        from dml.errors import DmlError
        from dml.registry.connection import require_answer

        try:
            require_answer(self.uri)
        except DmlError:
            return False
        return True

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)  # a step takes no longer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


class Training:
    """`dml train`, whose log is read while it runs."""

    def __init__(self, store: str, uri: str, seed: int) -> None:
        settings = [f"training.num_steps={STEPS}", "training.log_every_steps=1", f"seed={seed}"]
        settings += ["evaluation.nmi=false", "evaluation.baselines=false"]
        words = [word for setting in settings for word in ("--set", setting)]
        code = "from dml.cli import main; main()"
        command = ["train", "shop", "--preset", "smoke", "--store", store, "--json", *words]
        self.process = python_verb(code, command, uri)
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def reaches(self, step: int) -> None:
        until(lambda: any(f"step {step} of" in line for line in self.log), 240)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def ends(self) -> tuple[int, dict]:
        out = self.process.stdout.read()
        self._reader.join(60)
        return self.process.wait(60), json.loads(out)


def python_verb(code: str, words: list[str], uri: str) -> subprocess.Popen[str]:
    variables = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}  # 2 s instead of 14
    return python(f"import sys; sys.argv[0] = 'dml'\n{code}", *words, **variables)


@pytest.fixture
def shop(tmp_path):
    store = str(tmp_path / "store")
    ingest_flow.fn(IngestConfig(name="shop", source="glyphs:classes=40,per_class=8"), store)
    return store


def run_of(uri: str, model: str = "shop", version: int = 1) -> str:
    return str(connect(uri).get_model_version(model, str(version)).run_id)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_continues_while_mlflow_is_down_and_every_metric_arrives_once(server, shop):
    training = Training(shop, server.uri, seed=1)
    training.reaches(5)
    with training.paused():
        server.kill()
    killed_at = len(training.log)
    training.reaches(20)
    assert killed_at < len(training.log)
    with training.paused():  # however long a server takes to start
        server.start()
    status, answer = training.ends()
    assert status == 0, (answer, training.log[-20:])
    logged = history(server.uri, run_of(server.uri))
    assert [step for step, _ in logged] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_ends_without_mlflow_and_the_same_command_continues_later(server, shop):
    training = Training(shop, server.uri, seed=2)
    training.reaches(5)
    server.kill()
    status, answer = training.ends()
    assert status == 2
    assert re.search(f"MLflow must answer at {server.uri}.*run the same command", answer["error"])
    results = list(Path(shop).glob("runs/*/result.json"))
    assert len(results) == 1
    server.start()
    again = Training(shop, server.uri, seed=2)
    status, answer = again.ends()
    assert status == 0, (answer, again.log[-20:])
    logged = history(server.uri, run_of(server.uri, version=answer["model"]["version"]))
    assert [step for step, _ in logged] == list(range(1, STEPS + 1))
    assert not any("step 1 of" in line for line in again.log), "nothing is trained again"

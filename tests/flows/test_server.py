"""The real stack of `dml up`: Prefect's server and worker, the deployments, MLflow's server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]
DATASET = {"name": "tiny", "source": "glyphs:classes=40,per_class=8"}


@dataclass(frozen=True)
class LocalStack:
    process: subprocess.Popen[str]
    env: Mapping[str, str]
    folder: Path

    def prefect(self, *arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        return subprocess.run(command, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=300)

    def run(self, deployment: str, **parameters: Any) -> subprocess.CompletedProcess[str]:
        text = json.dumps(parameters)
        return self.prefect("deployment", "run", deployment, "--watch", "--params", text)

    def dml(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dml.cli", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300
        )

    def why(self) -> str:
        """The end of the worker's log, where a failed run says what happened."""
        return (self.folder / "store" / "logs" / "worker.log").read_text()[-3000:]

    def post(self, route: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            self.env["PREFECT_API_URL"] + route,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        return json.load(urllib.request.urlopen(request))

    def get(self, route: str) -> Any:
        return json.load(urllib.request.urlopen(self.env["PREFECT_API_URL"] + route))

    def runs_of(self, flow: str) -> list[dict[str, Any]]:
        runs = self.post(
            "/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC"}
        )
        return [run for run in runs if run["state_type"] != "SCHEDULED"]

    def states_of(self, run: Mapping[str, Any]) -> list[str]:
        """The names of all states that a flow run and its task runs were in."""
        of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        tasks = [("task", task["id"]) for task in self.post("/task_runs/filter", of_run)]
        return [
            state["name"]
            for kind, id_ in [("flow", run["id"]), *tasks]
            for state in self.get(f"/{kind}_run_states/?{kind}_run_id={id_}")
        ]

    def scheduled(self, flow: str) -> list[dict[str, Any]]:
        body = {
            "flows": {"name": {"any_": [flow]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        }
        runs: list[dict[str, Any]] = self.post("/flow_runs/filter", body)
        return runs

    def mlflow(self, route: str) -> Any:
        return json.load(urllib.request.urlopen(f"{self.env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{route}"))

    def processes(self) -> list[str]:
        """Command lines of everything that knows the stack's folder, Ray's processes among them."""
        listing = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True).stdout
        return [line for line in listing.splitlines() if str(self.folder) in line]


def until(condition: Callable[[], Any], timeout_s: float = 300.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.5)
    return value


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    folder = Path(tempfile.mkdtemp(prefix="dml-up-", dir="/tmp"))  # Ray's sockets need a short path
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    env |= {
        "DML_CACHE": str(folder / "cache"),
        "RAY_TMPDIR": str(folder / "ray"),
        "PREFECT_HOME": str(folder / "client"),
        "OMP_NUM_THREADS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",  # instead of 60
    }
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    process = subprocess.Popen(
        [sys.executable, "-m", "dml.cli", "up", "--store", str(folder / "store"), *ports],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith("Ctrl-C"):
            break
    env |= dict(re.findall(r"^export (\w+)=(.+)$", printed, re.MULTILINE))
    assert "PREFECT_API_URL" in env, f"dml up said: {printed}"
    stack = LocalStack(process, env, folder)
    try:
        yield stack
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 0
        until(lambda: not stack.processes(), 60)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(180)
        shutil.rmtree(folder)


def test_a_deployment_trains_registers_and_promotes_and_the_promotion_makes_an_index(stack: LocalStack):
    ingested = stack.run("ingest-flow/default", config=DATASET)
    assert ingested.returncode == 0, stack.why()
    trained = stack.run("train-flow", dataset="tiny", preset="smoke")
    assert trained.returncode == 0, stack.why()
    run = stack.runs_of("train-flow")[0]
    assert (run["name"], run["tags"]) == ("train tiny smoke", ["dataset:tiny"])

    model = stack.mlflow("registered-models/get?name=tiny")["registered_model"]
    assert [alias["alias"] for alias in model["aliases"]] == ["champion"]

    reindexed = until(
        lambda: [run for run in stack.runs_of("reindex-flow") if run["state_type"] == "COMPLETED"]
    )
    assert reindexed[0]["parameters"] == {"name": "tiny", "model": "tiny", "dataset": "tiny"}
    assert reindexed[0]["name"] == "reindex tiny"
    assert {"dataset:tiny", "index:tiny", "model:tiny"} <= set(reindexed[0]["tags"])
    assert (stack.folder / "store" / "indexes" / "tiny" / "current.json").exists()


def index_of_tiny(stack: LocalStack) -> None:
    if not (stack.folder / "store" / "indexes" / "tiny" / "current.json").exists():
        assert stack.run("ingest-flow/default", config=DATASET).returncode == 0
        assert stack.run("train-flow", dataset="tiny", preset="smoke").returncode == 0
        assert stack.run("index-flow", name="tiny", model="tiny", dataset="tiny").returncode == 0


def test_an_evaluation_shows_its_pictures_in_prefect_and_lays_them_in_mlflow(stack: LocalStack):
    index_of_tiny(stack)
    trained = stack.runs_of("train-flow")[-1]["id"]
    artifacts = stack.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [trained]}}})
    first = {"first-answers", "first-similarities", "first-roc", "first-training", "first-thresholds"}
    assert first <= {artifact["key"] for artifact in artifacts}
    done = stack.run("evaluate-flow", model="tiny", dataset="tiny")
    assert done.returncode == 0, stack.why()

    run = stack.runs_of("evaluate-flow")[0]["id"]
    artifacts = stack.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    types = {artifact["key"]: artifact["type"] for artifact in artifacts}
    assert {"report-map", "report-roc", "report-answers", "report-similarities"} <= types.keys()
    assert types["report-map"] == "image"
    assert types["report"] == "markdown"

    version = stack.mlflow("model-versions/get?name=tiny&version=1")["model_version"]
    folders = stack.mlflow(f"artifacts/list?run_id={version['run_id']}&path=reports")["files"]
    (page,) = (stack.folder / "store" / "reports").glob("*/index.html")
    assert [folder["path"] for folder in folders] == [f"reports/{page.parent.name}"]


def test_a_scheduled_index_is_refreshed_when_its_time_comes(stack: LocalStack):
    index_of_tiny(stack)
    scheduled_now = stack.dml("schedule", "tiny", "--cron", "* * * * *", "--json")
    assert scheduled_now.returncode == 0, scheduled_now.stderr
    assert json.loads(scheduled_now.stdout)["prefect"] == stack.env["PREFECT_API_URL"]

    coming = until(lambda: stack.scheduled("refresh-flow"))
    assert coming[0]["parameters"]["names"] == ["tiny"]
    done = until(lambda: [run for run in stack.runs_of("refresh-flow") if run["state_type"] == "COMPLETED"])
    assert done[0]["auto_scheduled"], stack.why()
    assert (done[0]["name"], "index:tiny" in done[0]["tags"]) == ("refresh tiny", True)
    assert stack.runs_of("reindex-flow")[0]["parent_task_run_id"] is not None

    assert stack.dml("schedule", "tiny", "--off").returncode == 0
    until(lambda: not stack.scheduled("refresh-flow"))


def test_a_scheduled_index_that_is_removed_is_taken_from_prefect(stack: LocalStack):
    index_of_tiny(stack)
    assert stack.run("index-flow", name="brief", model="tiny", dataset="tiny").returncode == 0
    assert stack.dml("schedule", "brief", "--cron", "* * * * *").returncode == 0
    until(lambda: stack.scheduled("refresh-flow"))
    assert stack.dml("rm", "index", "brief").returncode == 0
    until(lambda: not stack.scheduled("refresh-flow"))


def test_a_refresh_that_fails_is_a_failed_run_that_names_the_index(stack: LocalStack):
    index_of_tiny(stack)
    tomorrow = ("schedule", "tiny", "--cron", "0 0 1 1 *")
    assert stack.dml(*tomorrow, "--dataset", "gone").returncode == 0
    done = stack.run("refresh-flow/default")
    assert done.returncode == 1
    (failed, *_) = [run for run in stack.runs_of("refresh-flow") if not run["auto_scheduled"]]
    assert "1 of 1 were not refreshed: tiny" in failed["state"]["message"]
    assert "'gone'" in failed["state"]["message"]
    assert stack.dml("reindex").returncode == 1
    assert stack.dml("schedule", "tiny", "--off").returncode == 0


def test_another_terminal_learns_where_the_stack_is_and_a_second_start_that_it_runs(stack: LocalStack):
    store = str(stack.folder / "store")
    dml = f"{sys.executable} -m dml.cli"
    script = f'eval "$({dml} env --store {store})"; echo "$PREFECT_API_URL $MLFLOW_TRACKING_URI $DML_STORE"'
    env = {name: v for name, v in stack.env.items() if not name.startswith(("PREFECT_API", "MLFLOW_"))}
    completed = subprocess.run(
        ["bash", "-c", script], cwd=stack.folder, env=env, capture_output=True, text=True
    )
    assert completed.stdout.split() == [
        stack.env[n] for n in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "DML_STORE")
    ]
    second = stack.dml("up", "--store", store)
    assert second.returncode == 2
    assert f"pid {stack.process.pid}, since" in second.stderr


def test_outside_the_project_a_bare_name_is_refused_and_the_full_one_works(stack: LocalStack):
    tomorrow = ("deployment", "run", "--start-in", "1 day", "--param", "dataset=tiny")
    assert stack.prefect(*tomorrow, "train-flow").returncode == 0
    assert stack.prefect(*tomorrow, "train-flow", cwd=stack.folder).returncode == 1
    assert stack.prefect(*tomorrow, "train-flow/default", cwd=stack.folder).returncode == 0


def test_a_mistake_fails_at_once_and_is_not_retried(stack: LocalStack):
    done = stack.run("train-flow/default", dataset="nowhere")
    assert done.returncode == 1
    assert "dataset 'nowhere' must exist" in " ".join(done.stdout.split()), "the watcher sees why"
    assert "Traceback" not in done.stdout
    run = stack.runs_of("train-flow")[0]
    assert run["state_name"] == "Failed"
    states = stack.states_of(run)
    assert "Failed" in states
    assert "AwaitingRetry" not in states


@pytest.mark.ray
def test_a_cancelled_training_leaves_no_ray_process(stack: LocalStack):
    if not (stack.folder / "store" / "datasets" / "tiny").exists():
        assert stack.run("ingest-flow/default", config=DATASET).returncode == 0
    settings = ["training.num_steps=1000000", "training.num_workers=2", "name=endless"]
    parameters = json.dumps({"dataset": "tiny", "preset": "smoke", "settings": settings})
    started = stack.prefect("deployment", "run", "train-flow/default", "--params", parameters)
    assert started.returncode == 0, started.stdout
    until(lambda: any("raylet" in line for line in stack.processes()))
    run = stack.runs_of("train-flow")[0]
    assert stack.prefect("flow-run", "cancel", run["id"]).returncode == 0

    until(
        lambda: (
            stack.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})[0]["state_name"]
            == "Cancelled"
        )
    )
    until(lambda: not any("ray" in Path(line.split()[0]).name for line in stack.processes()), 180)


def test_a_verb_shows_up_as_a_flow_run_where_a_server_is_configured(stack: LocalStack):
    before = len(stack.runs_of("ingest-flow"))
    done = stack.dml("ingest", "glyphs:classes=6,per_class=2", "--name", "seen", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dataset"]["rows"] == 12
    runs = stack.runs_of("ingest-flow")
    assert len(runs) == before + 1
    assert runs[0]["state_type"] == "COMPLETED"

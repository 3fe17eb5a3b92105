"""How flows are run: concurrently, and only with the configured Prefect server."""

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prefect.utilities.callables import parameter_schema

from flows.dataset_report import dataset_report_flow
from flows.embed import embed_flow
from flows.evaluate import evaluate_flow
from flows.forget import forget_flow
from flows.index import index_flow
from flows.policy import _CHECK_TIMEOUT_S, map_concurrently
from flows.reindex import reindex_flow
from flows.report import report_flow
from flows.train import train_flow

RUN = """
import time
from prefect import flow
from dml.errors import Unreachable
from flows.policy import run
start = time.monotonic()
try:
    run(flow(lambda: print('ran'), name='f'))
except Unreachable as error:
    print(error)
print(time.monotonic() - start)
"""


def test_as_many_items_as_allowed_are_under_way_and_results_keep_their_order():
    together = threading.Barrier(2, timeout=120)

    def square(item: int) -> int:
        together.wait()  # broken unless two are under way at once
        return item * item

    assert map_concurrently(square, [1, 2, 3, 4], 2) == [1, 4, 9, 16]
    assert map_concurrently(str, [1, 2], 1) == ["1", "2"]
    assert map_concurrently(str, [], 3) == []


def test_after_an_error_no_further_item_is_begun():
    begun = []
    failed = threading.Event()

    def fail(item: int) -> None:
        begun.append(item)
        if item == 0:
            failed.set()
            raise ZeroDivisionError(item)
        failed.wait(30)
        threading.Event().wait(0.2)  # the failure is noticed while this is under way

    with pytest.raises(ZeroDivisionError):
        map_concurrently(fail, list(range(50)), 2)
    assert set(begun) >= {0, 1}
    assert len(begun) < 10


@pytest.fixture
def run_a_flow(tmp_path):
    """Run a flow in a process with a Prefect home of its own; returns what it printed, and its seconds."""

    def call(profile: str = "", **variables: str) -> tuple[str, float]:
        home = tmp_path / "prefect"
        home.mkdir()
        (home / "profiles.toml").write_text(profile)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            env={**env, "PREFECT_HOME": str(home), "PYTHONPATH": os.getcwd(), **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        printed, seconds = done.stdout.rstrip().rsplit("\n", 1)
        return printed, float(seconds)

    return call


@pytest.fixture
def silent_server():
    """An address that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api"


def test_a_flow_runs_as_its_function_where_no_prefect_is_configured(run_a_flow):
    assert run_a_flow()[0] == "ran"


def test_a_prefect_that_is_down_is_said_within_ten_seconds_with_the_variable_that_names_it(run_a_flow):
    printed, seconds = run_a_flow(PREFECT_API_URL="http://127.0.0.1:1/api")
    assert "http://127.0.0.1:1/api must answer" in printed
    assert "the variable PREFECT_API_URL" in printed
    assert "unset PREFECT_API_URL" in printed
    assert seconds < 50
    assert _CHECK_TIMEOUT_S < 10


def test_a_prefect_that_never_answers_is_not_waited_for(run_a_flow, silent_server):
    printed, seconds = run_a_flow(PREFECT_API_URL=silent_server)
    assert f"{silent_server} must answer" in printed
    assert seconds < 50, "of which five are waited; Prefect itself waits 60 for an answer"


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b"{}", b'["a"]'])
def test_a_server_that_is_no_prefect_is_named(run_a_flow, body):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    printed, _ = run_a_flow(PREFECT_API_URL=f"http://127.0.0.1:{server.server_port}/api")
    server.shutdown()
    assert "must answer; another server answers" in printed
    assert "the variable PREFECT_API_URL" in printed


def test_a_stale_profile_is_named(run_a_flow):
    profile = 'active = "office"\n[profiles.office]\nPREFECT_API_URL = "http://127.0.0.1:1/api"\n'
    printed, _ = run_a_flow(profile)
    assert "Prefect's profile 'office'" in printed
    assert "prefect config unset PREFECT_API_URL" in printed


@pytest.mark.parametrize(
    ("flow", "names"),
    [
        (train_flow, ["dataset", "name", "test_dataset"]),
        (evaluate_flow, ["model", "dataset"]),
        (embed_flow, ["model", "dataset"]),
        (index_flow, ["name", "model", "dataset"]),
        (reindex_flow, ["name", "model", "dataset"]),
        (report_flow, ["model", "dataset", "against"]),
        (dataset_report_flow, ["dataset", "model"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_name_of_digits_stays_a_name_though_prefect_reads_a_number(flow, names):
    actual = flow.validate_parameters(dict.fromkeys(names, 2024))
    for name in names:
        assert actual[name] == "2024"
        kinds = {each.get("type") for each in parameter_schema(flow.fn).properties[name]["anyOf"]}
        assert kinds - {"null"} == {"string", "integer"}


def test_a_test_that_calls_a_flow_without_prefect_fails_and_starts_no_server():
    with pytest.raises(ValueError, match="No Prefect API URL provided"):
        forget_flow("shop", ["00000.png"], "store")


def test_an_address_is_shown_without_its_password(run_a_flow):
    printed, _ = run_a_flow(PREFECT_API_URL="http://me:secret@127.0.0.1:1/api")
    assert "http://127.0.0.1:1/api must answer" in printed
    assert "secret" not in printed

"""Errors of the first connection to MLflow, and how soon they come."""

import importlib
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import pytest

from dml.errors import DmlError, InvalidSetting, Unreachable, without_password
from dml.registry import catalog
from dml.registry.connection import CONTACT_TIMEOUT_S, connect
from tests import ports


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Import MLflow first: the import takes seconds, and the tests measure only the waits."""
    importlib.import_module("mlflow.utils.rest_utils")


@pytest.fixture
def silent_port():
    """The port of a server that never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield server.getsockname()[1]


@pytest.fixture
def free_port():
    return ports.free_port()


@pytest.fixture
def serve():
    """Start a server with one response to every request, or a response per path; returns its address."""
    servers = []

    def start(status: int, body: bytes | Callable[[str], bytes]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body(self.path) if callable(body) else body)

            def log_message(self, *arguments):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


def test_a_server_that_is_down_is_reported_at_once(free_port, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    began = time.monotonic()
    with pytest.raises(Unreachable, match=f"http://127.0.0.1:{free_port}; no connection"):
        catalog.list_models(str(tmp_path))
    assert time.monotonic() - began < 60, "MLflow would try again for minutes"


def test_a_server_that_never_answers_is_reported_after_the_timeout(silent_port):
    began = time.monotonic()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{silent_port}; it does not answer in time"):
        connect(f"http://127.0.0.1:{silent_port}", timeout_s=1)
    assert 1 <= time.monotonic() - began < 60
    assert CONTACT_TIMEOUT_S < 10


def test_a_server_that_sends_single_bytes_is_reported_after_the_timeout():
    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            with suppress(OSError):
                while not over.wait(0.5):
                    self.wfile.write(b" ")

        def log_message(self, *arguments):
            pass

    over = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(Unreachable, match="it does not answer in time"):
        connect(f"http://127.0.0.1:{server.server_port}", timeout_s=1)
    assert 1 <= time.monotonic() - began < 60
    over.set()
    server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>Welcome</html>", "another server: '<html>Welcome"),
        (200, b"{}", "another server: '{}'"),
        (200, b'{"status": "ok"}', "another server"),
        (200, b'["a"]', "another server"),
        (404, b'{"detail":"Not Found"}', "status 404"),
        (401, b"who are you?", "MLFLOW_TRACKING_USERNAME"),
        (503, b"later", "status 503: 'later'"),
    ],
)
def test_a_server_that_is_not_mlflow_is_reported(serve, status, body, message):
    uri = serve(status, body)
    with pytest.raises(Unreachable, match=message) as raised:
        connect(uri)
    assert uri in str(raised.value)


def test_an_mlflow_with_no_experiments_is_accepted(serve):
    connect(serve(200, lambda path: b'{"experiment": {}}' if "experiments/get" in path else b"{}"))


def test_an_error_does_not_contain_the_password(free_port):
    uri = f"http://reader:secret@127.0.0.1:{free_port}"
    assert without_password(uri) == f"http://127.0.0.1:{free_port}"
    with pytest.raises(Unreachable) as raised:
        connect(uri)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("uri", ["nonsense://host", "./mlruns", "postgresql://reader:secret@127.0.0.1:1/x"])
def test_an_unsupported_address_is_refused(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InvalidSetting, Unreachable), match="MLFLOW_TRACKING_URI") as raised:
        connect(uri)
    assert isinstance(raised.value, DmlError)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("driver", ["", "+psycopg2"])
def test_a_database_server_that_is_down_is_reported_at_once(driver, free_port):
    began = time.monotonic()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{free_port}"):
        connect(f"postgresql{driver}://reader@127.0.0.1:{free_port}/mlflow")
    assert time.monotonic() - began < 60, "MLflow would try again for minutes"

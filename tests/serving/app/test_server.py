"""`dml serve` as a process: what a client of sockets can do to it."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import httpx
import pytest

from dml.serving.client import Client
from tests.embedding.parts import png
from tests.serving.app.parts import NAME, make_store

pytestmark = pytest.mark.slow
POST = b"POST /v1/indexes/shelves/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
LIMITS = ["limits.head_seconds=1.5", "limits.body_seconds=1.5", "limits.body_bytes=1000000"]


def start(store, *options):
    """A running service and its address."""
    words = [sys.executable, "-m", "dml.cli", "serve", "--store", store, "--port", "0", "--json", *options]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["address"]


def end(process):
    process.send_signal(signal.SIGINT)
    return process.wait(120)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    store, *_ = make_store(tmp_path_factory.mktemp("server"))
    process, address = start(store, *(word for limit in LIMITS for word in ("--set", limit)))
    yield address
    assert end(process) == 0


def connect(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def answer_to(address, sent):
    """All that comes back until the connection is closed."""
    with connect(address) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received.decode()


def test_a_client_searches_and_gets_typed_answers(service):
    with Client(service) as client:
        found = client.search(NAME, [png(3), "00003.png"], k=2)
        assert found.results[0].answers[0].id == "00003.png"
        assert client.indexes().indexes[0].name == NAME
        assert client.ready().indexes == [found.index]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half:", 408, "slow_head"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, 431, "long_head"),
        (b"no HTTP at all\r\n\r\n", 400, "malformed"),
        (
            POST + b"Content-Length: 500\r\n\r\n{",
            408,
            "slow_body",
        ),
        (
            POST + b"Content-Length: 100000000\r\n\r\n{",
            413,
            "too_large",
        ),
    ],
    ids=["half a request", "endless headers", "no request", "half a body", "100 MB"],
)
def test_a_broken_request_is_refused_and_its_connection_closed(service, sent, status, code):
    received = answer_to(service, sent)
    head, _, body = received.partition("\r\n\r\n")
    assert re.match(rf"HTTP/1.1 {status} ", head)
    assert json.loads(body)["error"]["code"] == code


def is_answered_before_slow_clients(address):
    """Whether a search is, of 50 that are refused after 1.5 s."""
    with ExitStack() as connections, Client(address) as client:
        slow = [connections.enter_context(connect(address)) for _ in range(50)]
        for connection in slow:
            connection.sendall(POST + b"Content-Length: 9\r\n")
        assert client.search(NAME, [png(3)], k=1).results[0].answers[0].id == "00003.png"
        refused, _, _ = select.select(slow, [], [], 0)
        return not refused


def test_slow_clients_do_not_disturb_others(service):
    # One that waited for them would be answered after them each time; a loaded machine is late now and then.
    assert any(is_answered_before_slow_clients(service) for _ in range(20))


def test_workers_share_an_address_and_end_together(tmp_path):
    store, *_ = make_store(tmp_path)
    process, address = start(store, "--workers", "2")
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            try:
                assert httpx.get(f"{address}/readyz").status_code == 200
                break
            except httpx.TransportError:
                time.sleep(0.2)
        else:
            pytest.fail("no worker answers")
    finally:
        assert end(process) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_that_can_open_no_index_says_so_and_ends(tmp_path, workers):
    store, _, index = make_store(tmp_path)
    with open(f"{index.uri}/index.faiss", "r+b") as file:
        file.write(b"damage")
    words = [sys.executable, "-m", "dml.cli", "serve", "--store", store, "--port", "0", "--workers", workers]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (2, "")
    assert "index.faiss" in done.stderr
    assert "A service must open an index to start" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_other_machines_are_not_served_without_keys(tmp_path):
    store, *_ = make_store(tmp_path)
    words = [sys.executable, "-m", "dml.cli", "serve", "--store", store, "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "dml keys make" in done.stderr

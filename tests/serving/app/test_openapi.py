"""Requests drawn from the OpenAPI: no 500, no status that it does not name, every answer of its schema."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serving.app.parts import make_store
from tests.serving.app.test_server import end, start

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "response_schema_conformance",
    "content_type_conformance",
    "response_headers_conformance",
]
EXAMPLES = 12


@pytest.mark.slow
def test_no_request_of_the_openapi_finds_a_500_or_an_undocumented_answer(tmp_path):
    store, *_ = make_store(tmp_path)
    process, address = start(store, "--set", "limits.rate=100000", "--set", "limits.burst=100000")
    try:
        program = Path(sys.executable).with_name("schemathesis")
        words = [program, "run", f"{address}/openapi.json", "--max-examples", str(EXAMPLES)]
        options = ["--phases", "examples,coverage,fuzzing", "--checks", ",".join(CHECKS), "--no-shrink"]
        options += ["--seed", "1", "--generation-deterministic"]
        words += [*options, "--warnings", "off"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)  # it leaves files
        assert done.returncode == 0, done.stdout[-5_000:]
        assert httpx.get(f"{address}/healthz").status_code == 200
    finally:
        assert end(process) == 0

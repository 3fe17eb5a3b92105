"""The test suite for GPU machines runs without most other libraries, and within eight minutes."""

import os
import subprocess
import sys
import time

import pytest

LIMIT_S = 480


def run_bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # the plugins are missing there too
    return subprocess.run(
        [sys.executable, "-m", "tests.bare", *arguments],
        env={**os.environ, **plugins, "DML_GPU_TEST_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_the_suite_for_a_gpu_runs_without_the_other_libraries_within_eight_minutes():
    began = time.monotonic()
    completed = run_bare("pytest", "-m", "gpu")
    assert completed.returncode == 0, completed.stdout[-3000:] + completed.stderr[-1000:]
    assert " failed" not in completed.stdout
    assert " passed" in completed.stdout
    assert time.monotonic() - began < LIMIT_S


def test_the_suite_for_a_gpu_imports_no_other_test():
    completed = run_bare("pytest", "-m", "gpu", "--collect-only")
    assert completed.returncode == 0, completed.stdout[-3000:] + completed.stderr[-1000:]
    files = {line.partition("::")[0] for line in completed.stdout.splitlines() if "::" in line}
    assert {file.rpartition("/")[0] for file in files} == {"tests/gpu"}

"""The benchmarks are no tests, but they must start: what they import is there."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_bare import run_bare

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("[!_]*.py")))
def test_what_a_benchmark_imports_is_there(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmark_says_what_it_needs():
    completed = subprocess.run([sys.executable, "-m", "benchmarks", "--gpu"], capture_output=True, text=True)
    assert completed.returncode == 2
    assert "must find a GPU" in completed.stderr


@pytest.mark.slow
def test_the_benchmark_for_a_gpu_runs_without_most_other_libraries(tmp_path):
    completed = run_bare(
        "benchmarks", "--gpu", "--device", "cpu", "--quick", "--out", str(tmp_path / "out.json")
    )
    assert completed.returncode == 0, completed.stderr[-3000:] + completed.stdout[-3000:]
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["part"] for row in rows} == {"rates", "evaluation", "training", "losses"}
    assert not [row for row in rows if row["failed"]]

"""The benchmarks are no tests, but they must start: what they import is there."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("[!_]*.py")))
def test_what_a_benchmark_imports_is_there(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)

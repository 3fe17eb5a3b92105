"""Runs a module without most libraries, as on a GPU machine: `python -m tests.bare MODULE ...`."""

import runpy
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

MISSING = {
    *("boto3", "faiss", "fastapi", "hypothesis", "matplotlib", "mlflow", "moto", "pandas", "prefect"),
    *("pytest_timeout", "pytorch_metric_learning", "ray", "rich", "scipy", "sklearn", "torchvision"),
    "typer",
}


class _Without(PathFinder):
    """A path finder that does not find the missing packages."""

    @classmethod
    def find_spec(cls, name: str, *arguments: Any) -> ModuleSpec | None:
        return None if name.partition(".")[0] in MISSING else super().find_spec(name, *arguments)


if __name__ == "__main__":
    sys.meta_path[:] = [_Without if finder is PathFinder else finder for finder in sys.meta_path]
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

"""Helpers for tests of the registry: small packages, and code run in a separate process."""

import os
import subprocess
import sys
from pathlib import Path

from dml.config import EncoderConfig, PreprocessingConfig
from dml.models.encoder import Encoder
from dml.models.package import save_package
from dml.refs import ModelRef, PackageRef
from dml.registry import catalog, tracking

GREY = PreprocessingConfig(color="L", resize=28, crop=28, mean=(0.5,), std=(0.5,))
ROOT = Path(__file__).parents[2]


class Step:
    """The metrics of one training step."""

    def __init__(self, step: int, **metrics: float) -> None:
        self.step, self._metrics = step, metrics

    def metrics(self) -> dict[str, float]:
        return self._metrics


def new_package(store: str, seed: int) -> PackageRef:
    return save_package(store, Encoder(EncoderConfig(dim=16), channels=1, seed=seed), GREY)


def new_run(store: str, name: str, identity: str) -> tracking.Run:
    return tracking.start_run(store, experiment=name, identity=identity, params={"encoder": {"dim": 16}})


def new_version(store: str, name: str, seed: int, recall: float) -> ModelRef:
    run = new_run(store, name, f"{name}-{seed}")
    with run.recording():
        return catalog.register(store, run, name, new_package(store, seed), {"recall_at_1": recall})


def python(code: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """A separate process that runs code with this project on its path."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

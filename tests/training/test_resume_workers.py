"""A run goes on with another number of workers, and ends where it would have ended."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dml.config import ExperimentConfig, IngestConfig
from dml.data.ingest import ingest
from dml.presets import experiment
from dml.refs import DatasetRef
from dml.training.loop import Hooks, train_loop
from dml.training.spawn import run_ranks
from dml.training.worker import Worker

# A gentle SGD: Adam would blow gradients of rounding size up to full steps, and a rough one their effects.
SETTINGS = [
    "training.threads_per_worker=1",
    "training.num_steps=12",
    "training.checkpoint_every_steps=4",
    "optimizer.kind=sgd",
    "optimizer.learning_rate=0.0001",
    "optimizer.freeze_backbone_steps=6",
    "training.ema_decay=0.9",
    'training.validation={"every_steps":6}',
    'loss={"kind":"sup_con"}',
]


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    store = str(tmp_path_factory.mktemp("store"))
    return ingest(IngestConfig(name="tiny", source="glyphs:classes=24,per_class=6", num_workers=1), store)


def run(
    config: ExperimentConfig, dataset: DatasetRef, kept: Path, restore: Path | None, die: bool
) -> dict[str, torch.Tensor] | None:
    """The encoder's weights; None where it was to die at the second checkpoint, after keeping the first."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0

    def save(step: int, folder: Path | None) -> None:
        if folder is not None and step == 4:
            shutil.copytree(folder, kept)
        if die and step == 8:
            raise Killed

    hooks = Hooks(report=lambda progress: None, save=save, restore=[restore] if restore else ())
    try:
        outcome = train_loop(config, dataset, Worker(rank, world_size), hooks)
    except Killed:
        return None
    assert outcome.best is not None
    return dict(outcome.encoder.state_dict())


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_killed_on_some_workers_continues_with_others(before, after, dataset, tmp_path):
    torch.set_num_threads(1)
    config = experiment("smoke").overridden(SETTINGS)
    undisturbed = run(config, dataset, tmp_path / "none", None, False)

    def start(world_size: int, *arguments: object) -> list[dict[str, torch.Tensor] | None]:
        if world_size == 1:
            return [run(*arguments)]
        return run_ranks(world_size, run, *arguments)

    kept = tmp_path / "kept"
    assert start(before, config, dataset, kept, None, True) == [None] * before
    for weights in start(after, config, dataset, kept, kept, False):
        for name, value in undisturbed.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)

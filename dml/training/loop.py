"""The training loop as one worker runs it: it neither knows who started it nor where its reports go."""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dml.config import ExperimentConfig
from dml.errors import CorruptArtifact
from dml.models.backbones import weights_digest
from dml.models.encoder import Encoder
from dml.models.precision import convolutions_in
from dml.refs import BestStep, DatasetRef
from dml.storage import digest_of
from dml.training.cached_step import cached_train_step
from dml.training.checkpoint import verify_checkpoint
from dml.training.guard import Guard
from dml.training.meter import Meter, Progress
from dml.training.optimizer import rate_factor, set_rates
from dml.training.state import TrainingState
from dml.training.step import train_step
from dml.training.supply import DatasetSupply, Supply
from dml.training.validation import validate
from dml.training.worker import Worker

logger = logging.getLogger(__name__)

CODE_VERSION = 3
"""Part of a run's identity: raise it when the same configuration would train another model."""
_INDECISIVE = {
    "num_workers",
    "threads_per_worker",
    "checkpoint_every_steps",
    "log_every_steps",
    "max_failures",
}


@dataclass(frozen=True)
class Outcome:
    """What training leaves on every worker: equal weights, and how it went since this start."""

    encoder: Encoder
    """Of the best step where steps were judged; else the moving average, or the last weights."""
    loss: float
    """Mean of the last `log_every_steps` steps."""
    images_per_second: float
    """Of all workers together, since this start."""
    data_wait: float
    """Share of that time spent waiting for images, [0, 1]."""
    best: BestStep | None


@dataclass(frozen=True)
class Hooks:
    """Where the loop's news go."""

    report: Callable[[Progress], None]
    """Called by rank 0 every `log_every_steps`."""
    save: Callable[[int, Path | None], None]
    """Called by every rank at every checkpoint with the steps done and, on rank 0, a folder to publish."""
    restore: Iterable[Path] = ()
    """Checkpoints' folders, the newest first: it goes on from the first that is whole on every worker."""


def run_identity(config: ExperimentConfig, dataset: DatasetRef) -> str:
    """Names a run by all that decides its result, and by nothing else: equal identity means equal model.

    How it is judged, logged or spread over workers does not decide it; the content of a weights file does,
    its path does not.
    """
    decisive = decisive_settings(config)
    backbone = config.encoder.backbone
    if backbone.kind != "conv4" and backbone.weights is not None:
        decisive["encoder"]["backbone"]["weights"] = weights_digest(backbone.weights)
    return digest_of(decisive, dataset.fingerprint, CODE_VERSION)[:16]


def decisive_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that decide what a run learns, as a JSON tree."""
    return config.model_dump(
        mode="json",
        exclude={
            "name": True,
            "evaluation": True,
            "gate": True,
            "training": _INDECISIVE,
            "loss": {"sharded"},
        },
    )


def train_loop(config: ExperimentConfig, dataset: DatasetRef, worker: Worker, hooks: Hooks) -> Outcome:
    """Train an encoder; every worker of a group calls this with the same configuration.

    Args:
        config: the experiment.
        dataset: a dataset version with a split `train`.
        worker: this process's place; more than one need an initialised default process group.
        hooks: where progress and checkpoints go, and what to resume from.

    Returns:
        The trained encoder, with equal weights on every worker, and the speed of the steps of this start.

    Raises:
        TrainingFailed: the loss or a gradient stopped being a number; the message names the step and images.
        InvalidData: nothing to train on, or fewer classes than a batch needs.
    """
    return train_on(DatasetSupply(config, dataset), config, worker, hooks, run=run_identity(config, dataset))


def train_on(supply: Supply, config: ExperimentConfig, worker: Worker, hooks: Hooks, *, run: str) -> Outcome:
    """`train_loop` on images from anywhere; `run` is the identity that checkpoints bear."""
    state = TrainingState(config, supply.num_classes, worker, run)
    done = _resume(state, hooks, worker)
    training, first, num_known = config.training, done, done
    guard = Guard(state.learner, worker, supply.ids)
    batches = supply.batches(worker, done)
    state.show_classes(batches.sampler, done, resumed=True)
    meter, whole = Meter(config.sampler.batch_size), Meter(config.sampler.batch_size)
    found: BestStep | None = None
    take_step: Callable[..., Tensor] = train_step
    if training.chunk_rows is not None:
        take_step = partial(cached_train_step, chunk_rows=training.chunk_rows)
    with closing(batches), convolutions_in(state.precision):
        for step, (images, labels, positions) in enumerate(batches, start=done):
            if step in (first, config.optimizer.freeze_backbone_steps):
                learner = state.begin(step)
            set_rates(state.optimizer, rate_factor(config.optimizer, step, training.num_steps))
            images = images.to(worker.device, non_blocking=True)
            if training.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            _seed_chance(config.seed, step, worker.rank)
            loss = take_step(
                learner,
                state.optimizer,
                images,
                labels.to(worker.device, non_blocking=True),
                clip_norm=config.optimizer.clip_norm,
            )
            losses = guard.see(step, positions, loss)
            if state.average is not None:
                state.average.update(state.encoder, step)
            done = step + 1
            state.show_classes(batches.sampler, done)
            last = done == training.num_steps
            judged = training.validation is not None and (done % training.validation.every_steps == 0 or last)
            reported = done % training.log_every_steps == 0 or last
            saved = done % training.checkpoint_every_steps == 0 or last
            if judged or reported or saved:
                losses += guard.settle()
            meter.losses += losses
            whole.losses += losses
            state.numbers.losses[num_known : num_known + len(losses)] = torch.tensor(
                losses, dtype=torch.float64
            )
            num_known += len(losses)
            if judged:
                began = time.perf_counter()
                found = _judge(state, supply, worker, done)
                for each in (meter, whole):
                    each.leave_out(time.perf_counter() - began)
            if reported and worker.rank == 0:
                hooks.report(meter.progress(done, batches.wait_s, found, state.best_step))
                found = None
            if saved:
                _save(hooks, state, done)
        overall = whole.progress(done, batches.wait_s)
    return Outcome(
        encoder=state.shipped,
        loss=float(np.mean(state.numbers.losses[-training.log_every_steps :].numpy())),
        images_per_second=overall.images_per_second,
        data_wait=overall.data_wait,
        best=state.best_step,
    )


def _resume(state: TrainingState, hooks: Hooks, worker: Worker) -> int:
    """Become the newest checkpoint that no worker finds damaged; returns the steps it has done, or 0."""
    damaged = 0
    for folder in hooks.restore:
        fault = None
        try:
            verify_checkpoint(folder)
        except CorruptArtifact as error:
            fault = str(error)
        faults = [found for found in worker.collect([fault]) if found is not None]
        if not faults:
            done = state.read(folder)
            logger.info("resuming after step %d", done)
            return done
        damaged += 1
        logger.warning("the checkpoint %s is left out: %s", folder.name, faults[0])
    if damaged:
        logger.warning("no checkpoint is whole: beginning anew")
    return 0


def _seed_chance(seed: int, step: int, rank: int) -> None:
    """What a backbone draws, such as dropout, depends on this alone, and not on where the run was resumed."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def _judge(state: TrainingState, supply: Supply, worker: Worker, step: int) -> BestStep:
    config = state.config.training.validation
    assert config is not None
    assert supply.validation is not None
    assert state.best is not None
    # As its package will embed: on a GPU in the precision of training, on a CPU exactly.
    precision = state.precision if worker.device.type == "cuda" else "float32"
    found = validate(state.current, config, supply.validation, step, worker, precision=precision)
    state.best.offer(state.current, step, found.value)
    return found


def _save(hooks: Hooks, state: TrainingState, step: int) -> None:
    if not state.has_part():
        hooks.save(step, None)
        return
    with TemporaryDirectory() as folder:
        state.write(Path(folder), step)
        hooks.save(step, Path(folder))

"""The training loop of one worker, independent of launcher and logger."""

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from dml.config import ExperimentConfig, TrainingConfig
from dml.data.batches import Batch
from dml.errors import CorruptArtifact
from dml.models.backbones import weights_digest
from dml.models.encoder import Encoder
from dml.models.precision import convolutions_in
from dml.refs import BestStep, DatasetRef
from dml.storage import digest_of
from dml.training.cached_step import cached_train_step
from dml.training.checkpoint import verify_checkpoint
from dml.training.guard import Guard
from dml.training.lora import merge_adapters
from dml.training.meter import Meter, Progress
from dml.training.optimizer import rate_factor, set_rates
from dml.training.state import TrainingState
from dml.training.step import train_step
from dml.training.train_data import DatasetTrainData, TrainData
from dml.training.validation import validate
from dml.training.worker import Worker

logger = logging.getLogger(__name__)

CODE_VERSION = 3
"""Part of a run's identity: raise it when the same configuration would train another model."""
_NOT_DECISIVE = {
    "num_workers",
    "threads_per_worker",
    "loading_processes",
    "checkpoint_every_steps",
    "log_every_steps",
    "max_failures",
}


@dataclass(frozen=True)
class Outcome:
    """The result of training on every worker: equal weights, and statistics since this start."""

    encoder: Encoder
    """Encoder of the best step if there is validation; else the moving average, or the last weights. Low-rank
    adapters are merged into its weights."""
    loss: float
    """Mean of the last `log_every_steps` steps."""
    images_per_second: float
    """Of all workers together, since this start."""
    data_wait: float
    """Fraction of that time spent waiting for images, [0, 1]."""
    best: BestStep | None


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the loop."""

    report: Callable[[Progress], None]
    """Called by rank 0 every `log_every_steps`."""
    save: Callable[[int, Path | None], None]
    """Called by every rank at every checkpoint with the step count and, on rank 0, a folder to publish."""
    restore: Iterable[Path] = ()
    """Folders of checkpoints, newest first; training resumes from the first one valid on every worker."""


def run_identity(config: ExperimentConfig, dataset: DatasetRef) -> str:
    """A fingerprint of everything that determines the trained model: equal identity means equal model.

    Evaluation, logging and number of workers are not part of it. The contents of a weights file and of a
    package to start from are, their paths are not.
    """
    decisive = decisive_settings(config)
    backbone = config.encoder.backbone
    if backbone.kind != "conv4" and backbone.weights is not None:
        decisive["encoder"]["backbone"]["weights"] = weights_digest(backbone.weights)
    return digest_of(decisive, dataset.fingerprint, CODE_VERSION)[:16]


def decisive_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that determine the trained model, as a JSON tree."""
    return config.model_dump(
        mode="json",
        exclude={
            "name": True,
            "evaluation": True,
            "gate": True,
            "training": _NOT_DECISIVE,
            "loss": {"sharded"},
            "initial": {"uri", "model"},
        },
    )


def train_loop(config: ExperimentConfig, dataset: DatasetRef, worker: Worker, hooks: Hooks) -> Outcome:
    """Train an encoder; every worker of a group calls this with the same configuration.

    Args:
        config: the experiment.
        dataset: a dataset version with a split `train`.
        worker: this worker; several workers need an initialized default process group.
        hooks: callbacks for progress and checkpoints, and checkpoints to resume from.

    Returns:
        The trained encoder, with equal weights on every worker, and the speed since this start.

    Raises:
        TrainingFailed: the loss or a gradient is not finite; the message names the step and the images.
        InvalidData: there are no training rows, or fewer classes than a batch needs.
    """
    train_data = DatasetTrainData(config, dataset)
    return train_on(train_data, config, worker, hooks, run=run_identity(config, dataset))


def train_on(
    train_data: TrainData, config: ExperimentConfig, worker: Worker, hooks: Hooks, *, run: str
) -> Outcome:
    """`train_loop` for any training data; `run` is the identity stored in checkpoints."""
    state = TrainingState(config, train_data.num_classes, worker, run)
    first_step = _resume(state, hooks, worker)
    guard = Guard(state.learner, worker, train_data.ids)
    batches = train_data.batches(worker, first_step)
    state.refresh_class_vectors(batches.sampler, first_step, resumed=True)
    recent, whole = Meter(config.sampler.batch_size), Meter(config.sampler.batch_size)
    num_known, validated = first_step, None
    with closing(batches), convolutions_in(state.precision):
        for step, batch in enumerate(batches, start=first_step):
            if step in (first_step, config.freeze_backbone_steps):
                learner = state.begin(step)
            loss = _step(state, learner, batch, step)
            losses = guard.observe(step, batch[2], loss)
            done = step + 1
            state.refresh_class_vectors(batches.sampler, done)
            due = Due.after(done, config.training)
            if due.validation or due.report or due.checkpoint:
                losses += guard.flush()
            state.history.write(num_known, losses)
            num_known += len(losses)
            recent.losses += losses
            whole.losses += losses
            if due.validation:
                with recent.paused(), whole.paused():
                    validated = _validate(state, train_data, worker, done)
            if due.report and worker.rank == 0:
                hooks.report(recent.progress(done, batches.wait_s, validated, state.best_step))
                validated = None
            if due.checkpoint:
                _save(hooks, state, done)
        overall = whole.progress(config.training.num_steps, batches.wait_s)
    return Outcome(
        encoder=merge_adapters(state.shipped),
        loss=state.history.mean_of_last(config.training.log_every_steps),
        images_per_second=overall.images_per_second,
        data_wait=overall.data_wait,
        best=state.best_step,
    )


@dataclass(frozen=True)
class Due:
    """The actions due after a step; after the last step all of them."""

    validation: bool
    report: bool
    checkpoint: bool

    @classmethod
    def after(cls, done: int, training: TrainingConfig) -> Self:
        """What is due when `done` steps are done."""
        last = done == training.num_steps
        return cls(
            validation=training.validation is not None
            and (last or done % training.validation.every_steps == 0),
            report=last or done % training.log_every_steps == 0,
            checkpoint=last or done % training.checkpoint_every_steps == 0,
        )


def _step(state: TrainingState, learner: nn.Module, batch: Batch, step: int) -> Tensor:
    """One update of the weights, and of their average if there is one; returns the loss."""
    config, device = state.config, state.worker.device
    images, labels = batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)
    if config.training.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    set_rates(state.optimizer, rate_factor(config.optimizer, step, config.training.num_steps))
    _seed_torch(config.seed, step, state.worker.rank)
    clip_norm, chunk_rows = config.optimizer.clip_norm, config.training.chunk_rows
    if chunk_rows is None:
        loss = train_step(learner, state.optimizer, images, labels, clip_norm=clip_norm)
    else:
        loss = cached_train_step(
            state.learner, state.optimizer, images, labels, clip_norm=clip_norm, chunk_rows=chunk_rows
        )
    if state.average is not None:
        state.average.update(state.encoder, step)
    return loss


def _resume(state: TrainingState, hooks: Hooks, worker: Worker) -> int:
    """Load the newest checkpoint that is valid on every worker; returns its number of steps, or 0."""
    damaged = 0
    for folder in hooks.restore:
        fault = None
        try:
            verify_checkpoint(folder)
        except CorruptArtifact as error:
            fault = str(error)
        faults = [error for error in worker.collect([fault]) if error is not None]
        if not faults:
            done = state.read(folder)
            logger.info("resuming after step %d", done)
            return done
        damaged += 1
        logger.warning("the checkpoint %s is skipped: %s", folder.name, faults[0])
    if damaged:
        logger.warning("no valid checkpoint: starting from step 0")
    return 0


def _seed_torch(seed: int, step: int, rank: int) -> None:
    """Seed torch, so that dropout and the like depend only on the step and not on resuming."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def _validate(state: TrainingState, train_data: TrainData, worker: Worker, step: int) -> BestStep:
    config = state.config.training.validation
    assert config is not None
    assert train_data.validation is not None
    assert state.best is not None
    # The precision in which the package will embed: on a GPU that of training, on a CPU float32.
    precision = state.precision if worker.device.type == "cuda" else "float32"
    measured = validate(state.current, config, train_data.validation, step, worker, precision=precision)
    state.best.offer(state.current, step, measured.value)
    return measured


def _save(hooks: Hooks, state: TrainingState, step: int) -> None:
    if not state.has_part():
        hooks.save(step, None)
        return
    with TemporaryDirectory() as folder:
        state.write(Path(folder), step)
        hooks.save(step, Path(folder))

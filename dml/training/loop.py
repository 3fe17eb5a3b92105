"""The training loop as one worker runs it: it neither knows who started it nor where its reports go."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dml.config import ExperimentConfig
from dml.data.batches import TrainingBatches
from dml.data.dataset import open_mapped, read_rows
from dml.data.sampling import BatchStream, SimilarClassBatchSampler
from dml.errors import InvalidData, TrainingFailed
from dml.models.backbones import weights_digest
from dml.models.encoder import Encoder
from dml.refs import DatasetRef
from dml.storage import digest_of
from dml.training.batch_norm import synchronise_batch_norm
from dml.training.build import build_loss, build_sampler
from dml.training.cached_step import cached_train_step
from dml.training.checkpoint import read_checkpoint, write_checkpoint
from dml.training.class_vectors import WithClassVectors
from dml.training.ghost_batch_norm import refuse_training_batch_norm
from dml.training.optimizer import build_optimizer, rate_factor, set_rates
from dml.training.step import Learner, train_step

logger = logging.getLogger(__name__)

CODE_VERSION = 2
"""Part of a run's identity: raise it when the same configuration would train another model."""
_INDECISIVE = {
    "num_workers",
    "threads_per_worker",
    "checkpoint_every_steps",
    "log_every_steps",
    "max_failures",
}


@dataclass(frozen=True)
class Worker:
    """Which of how many workers this is, and where it computes."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Progress:
    """What a step reports: `step` steps are done, and the means since the last report."""

    step: int
    loss: float
    images_per_second: float
    data_wait: float
    """Share of the time spent waiting for images, [0, 1]."""

    def metrics(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "images_per_second": self.images_per_second,
            "data_wait": self.data_wait,
        }


@dataclass(frozen=True)
class Outcome:
    """What training leaves on every worker: equal weights, and how it went since this start."""

    encoder: Encoder
    loss: float
    images_per_second: float
    data_wait: float


@dataclass(frozen=True)
class Hooks:
    """Where the loop's news go."""

    report: Callable[[Progress], None]
    """Called by rank 0 every `log_every_steps`."""
    save: Callable[[int, Path | None], None]
    """Called by every rank at every checkpoint with the steps done and, on rank 0, a folder to publish."""
    restore: Path | None = None
    """A checkpoint's folder to go on from."""


def run_identity(config: ExperimentConfig, dataset: DatasetRef) -> str:
    """Names a run by all that decides its result, and by nothing else: equal identity means equal model.

    How it is judged, logged or spread over workers does not decide it; the content of a weights file does,
    its path does not.
    """
    decisive = config.model_dump(
        mode="json", exclude={"name": True, "evaluation": True, "gate": True, "training": _INDECISIVE}
    )
    backbone = config.encoder.backbone
    if backbone.kind != "conv4" and backbone.weights is not None:
        decisive["encoder"]["backbone"]["weights"] = weights_digest(backbone.weights)
    return digest_of(decisive, dataset.fingerprint, CODE_VERSION)[:16]


@dataclass(frozen=True)
class TrainingRows:
    """The train split: rows' positions in the dataset, and class ids counted from 0."""

    positions: NDArray[np.int64]
    class_ids: NDArray[np.int64]

    @property
    def num_classes(self) -> int:
        return int(self.class_ids.max()) + 1 if len(self.class_ids) else 0


def read_training_rows(dataset: DatasetRef) -> TrainingRows:
    """Positions and contiguous class ids of a dataset's train split; raises InvalidData when it is empty."""
    rows = read_rows(dataset, split="train", columns=["class_index"])
    if not len(rows):
        raise InvalidData(
            f"Training needs rows in the split 'train'; dataset {dataset.name}@{dataset.version} has the "
            f"splits {sorted(dataset.splits)}. Ingest it with another split."
        )
    _, class_ids = np.unique(rows["class_index"].to_numpy(), return_inverse=True)
    return TrainingRows(rows["position"].to_numpy(), class_ids.astype(np.int64))


def initial_encoder(config: ExperimentConfig) -> Encoder:
    """The encoder a run starts from, the same on every worker."""
    return Encoder(config.encoder, channels=config.preprocessing.channels, seed=config.seed)


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
        TrainingFailed: the loss stopped being a number; the message names the step and the images.
        InvalidData: nothing to train on, or fewer classes than a batch needs.
    """
    rows = read_training_rows(dataset)
    encoder, loss, learner = _build(config, rows.num_classes, worker)
    optimizer = build_optimizer(config.optimizer, encoder, loss)
    run = run_identity(config, dataset)
    modules = {"encoder": encoder, "loss": loss}
    done = 0
    if hooks.restore is not None:
        done = read_checkpoint(hooks.restore, run=run, modules=modules, optimizer=optimizer)
        logger.info("resuming after step %d", done)
    learner.train()
    batches = _batches(config, dataset, rows, worker, first_step=done)
    _show_classes(batches.sampler, loss, done, resumed=True)
    meter, whole = _Meter(config.sampler.batch_size), _Meter(config.sampler.batch_size)
    training = config.training
    take_step: Callable[..., float] = train_step
    if training.chunk_rows is not None:
        take_step = partial(cached_train_step, chunk_rows=training.chunk_rows)
    try:
        for step, (images, labels, positions) in enumerate(batches, start=done):
            set_rates(optimizer, rate_factor(config.optimizer, step, training.num_steps))
            images = images.to(worker.device, non_blocking=True)
            if training.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            value = take_step(
                learner,
                optimizer,
                images,
                labels.to(worker.device),
                clip_norm=config.optimizer.clip_norm,
            )
            _refuse_nan(value, step, dataset, positions)
            meter.add(value)
            whole.add(value)
            done = step + 1
            _show_classes(batches.sampler, loss, done)
            last = done == training.num_steps
            if worker.rank == 0 and (done % training.log_every_steps == 0 or last):
                hooks.report(meter.progress(done, batches.wait_s))
            if done % training.checkpoint_every_steps == 0 and not last:
                _save(hooks, worker, done, run, modules, optimizer)
        final_loss = float(np.mean(whole.losses[-training.log_every_steps :]))
        overall = whole.progress(done, batches.wait_s)
    finally:
        batches.close()
    return Outcome(encoder, final_loss, overall.images_per_second, overall.data_wait)


def _build(
    config: ExperimentConfig, num_classes: int, worker: Worker
) -> tuple[Encoder, nn.Module, nn.Module]:
    torch.manual_seed(config.seed)
    encoder = initial_encoder(config).to(worker.device)
    chunked = config.training.chunk_rows is not None
    if chunked and not config.training.ghost_batch_norm:
        refuse_training_batch_norm(encoder)
    if worker.world_size > 1 and not (chunked or config.encoder.freeze_batch_norm):
        synchronise_batch_norm(encoder)
    if config.training.channels_last:
        encoder = encoder.to(memory_format=torch.channels_last)
    loss = build_loss(
        config.loss,
        dim=config.encoder.dim,
        num_classes=num_classes,
        seed=config.seed,
        memory=config.memory,
    )
    if config.sampler.kind == "similar":
        loss = WithClassVectors(loss, num_classes, config.encoder.dim, momentum=config.sampler.momentum)
    precision = config.training.precision or ("bfloat16" if worker.device.type == "cuda" else "float32")
    learner: nn.Module = Learner(encoder, loss.to(worker.device), precision)
    if worker.world_size > 1 and not chunked:  # a cached step synchronises by itself, once
        # Every rank computes equal buffers (batch statistics, a memory): none needs rank 0's each step.
        learner = DistributedDataParallel(learner, broadcast_buffers=False)
    return encoder, loss, learner


def _batches(
    config: ExperimentConfig, dataset: DatasetRef, rows: TrainingRows, worker: Worker, *, first_step: int
) -> TrainingBatches:
    sampler = build_sampler(
        config.sampler,
        dataset,
        rows.class_ids,
        seed=config.seed,
        rank=worker.rank,
        world_size=worker.world_size,
        num_steps=config.training.num_steps,
        first_step=first_step,
    )
    return TrainingBatches(
        open_mapped(dataset),
        positions=rows.positions,
        class_ids=rows.class_ids,
        sampler=sampler,
        preprocessing=config.preprocessing,
        augmentation=config.augmentation,
        seed=config.seed,
    )


def _show_classes(sampler: BatchStream, loss: nn.Module, done: int, *, resumed: bool = False) -> None:
    """Let a sampler of similar classes see them when its batches of old vectors are used up, or again."""
    if isinstance(sampler, SimilarClassBatchSampler):
        assert isinstance(loss, WithClassVectors)
        n = sampler.refresh_every_steps
        if resumed and done >= n:
            sampler.set_class_vectors(loss.class_vectors())  # a checkpoint holds those of the step it is of
        elif not resumed and done % n == 0:
            loss.freeze()
            sampler.set_class_vectors(loss.class_vectors())


def _refuse_nan(value: float, step: int, dataset: DatasetRef, positions: NDArray[np.int64]) -> None:
    if math.isfinite(value):
        return
    ids = read_rows(dataset, columns=["id"])["id"].take(positions[:8]).to_pylist()
    raise TrainingFailed(
        f"The loss must stay a number; it is {value} at step {step}, on the batch that begins with {ids}. "
        "Try a lower learning rate, optimizer.clip_norm=1, more warmup_steps, or precision float32."
    )


def _save(
    hooks: Hooks,
    worker: Worker,
    step: int,
    run: str,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> None:
    if worker.rank != 0:
        hooks.save(step, None)
        return
    with TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), step=step, run=run, modules=modules, optimizer=optimizer)
        hooks.save(step, Path(folder))


class _Meter:
    """Means since the last report."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.losses: list[float] = []
        self.since = time.perf_counter()
        self.waited_s = 0.0

    def add(self, loss: float) -> None:
        self.losses.append(loss)

    def progress(self, step: int, wait_s: float) -> Progress:
        """The means up to now; `wait_s` is the total waited since the start of training."""
        now = time.perf_counter()
        elapsed_s = max(now - self.since, 1e-9)
        progress = Progress(
            step=step,
            loss=float(np.mean(self.losses)),
            images_per_second=len(self.losses) * self.batch_size / elapsed_s,
            data_wait=min((wait_s - self.waited_s) / elapsed_s, 1.0),
        )
        self.losses, self.since, self.waited_s = [], now, wait_s
        return progress

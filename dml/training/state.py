"""The training state of a run, which a checkpoint stores: encoder, loss, optimizer, averages, history."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dml.config import ExperimentConfig
from dml.data.sampling import BatchSampler, SimilarClassBatchSampler
from dml.losses import keep_shards_local
from dml.models.encoder import Encoder
from dml.models.precision import choose_precision
from dml.refs import BestStep
from dml.training.averages import AveragedEncoder, BestEncoder
from dml.training.batch_norm import synchronize_batch_norm
from dml.training.build import build_loss
from dml.training.checkpoint import has_part, read_checkpoint, write_checkpoint
from dml.training.class_vectors import WithClassVectors
from dml.training.ghost_batch_norm import refuse_training_batch_norm
from dml.training.initial import initial_encoder
from dml.training.lora import add_adapters
from dml.training.optimizer import build_optimizer
from dml.training.step import Learner
from dml.training.worker import Worker

logger = logging.getLogger(__name__)


class LossHistory(nn.Module):
    """The loss of every step; it is in every checkpoint, so that a resumed run has the earlier losses."""

    losses: Tensor
    """(num_steps,) float64; NaN for future steps."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.full((num_steps,), torch.nan, dtype=torch.float64))

    def write(self, first_step: int, losses: Sequence[float]) -> None:
        """Store the losses of consecutive steps, starting at `first_step`."""
        self.losses[first_step : first_step + len(losses)] = torch.tensor(losses, dtype=torch.float64)

    def mean_of_last(self, num_steps: int) -> float:
        """The mean loss over the last steps of the run."""
        return float(np.mean(self.losses[-num_steps:].numpy()))


class TrainingState:
    """Encoder, loss, optimizer, loss history, and the average and best copies of the encoder.

    Args:
        config: the experiment.
        num_classes: C, number of training classes.
        worker: this worker.
        run: identity of the run, stored in its checkpoints.
    """

    def __init__(self, config: ExperimentConfig, num_classes: int, worker: Worker, run: str) -> None:
        self.config, self.worker, self.run = config, worker, run
        training = config.training
        torch.manual_seed(config.seed)
        self.encoder = initial_encoder(config)
        if config.initial is not None and config.initial.tune == "lora":
            add_adapters(self.encoder.backbone, config.initial.lora, seed=config.seed)
        self.encoder = self.encoder.to(worker.device)
        chunked = training.chunk_rows is not None
        if chunked and not training.ghost_batch_norm:
            refuse_training_batch_norm(self.encoder)
        if worker.world_size > 1 and not (chunked or config.encoder.freeze_batch_norm):
            synchronize_batch_norm(self.encoder, worker.device)
        if training.channels_last:
            self.encoder = self.encoder.to(memory_format=torch.channels_last)
        loss = build_loss(
            config.loss,
            dim=config.encoder.dim,
            num_classes=num_classes,
            seed=config.seed,
            memory=config.memory,
            unit_length=config.encoder.unit_length,
        )
        if config.sampler.kind == "similar":
            loss = WithClassVectors(loss, num_classes, config.encoder.dim, momentum=config.sampler.momentum)
        self.loss = loss.to(worker.device)
        self.precision, why = choose_precision(training.precision, worker.device)
        logger.info("precision %s: %s, %s", training.precision, self.precision, why)
        self.learner = Learner(self.encoder, self.loss, self.precision)
        self.optimizer = build_optimizer(config.optimizer, self.encoder, self.loss)
        self.history = LossHistory(training.num_steps)
        self.average: AveragedEncoder | None = None
        if training.ema_decay is not None:
            self.average = AveragedEncoder(self.encoder, training.ema_decay)
        self.best: BestEncoder | None = None
        if training.validation is not None:
            self.best = BestEncoder(self.encoder)
        self._trained_backbone = [p for p in self.encoder.backbone.parameters() if p.requires_grad]
        if training.compile:
            self.encoder.compile()  # in place: no weight changes its name

    @property
    def current(self) -> Encoder:
        """The result if training ended now: the average if there is one."""
        return self.encoder if self.average is None else self.average.encoder

    @property
    def shipped(self) -> Encoder:
        """The result of a finished run: the best encoder if there is validation."""
        return self.current if self.best is None else self.best.encoder

    @property
    def best_step(self) -> BestStep | None:
        """The step of the best weights so far."""
        validation = self.config.training.validation
        if self.best is None or validation is None or not int(self.best.step):
            return None
        return BestStep(step=int(self.best.step), metric=validation.metric, value=float(self.best.value))

    def begin(self, step: int) -> nn.Module:
        """Prepare training from a step, and return the module for `train_step`.

        In the first `freeze_backbone_steps` the backbone has no gradient, so that neither the optimizer nor
        weight decay changes it, and is in evaluation mode: fixed batch norm statistics, no dropout.
        """
        frozen = step < self.config.freeze_backbone_steps
        self.learner.train()
        for parameter in self._trained_backbone:
            parameter.requires_grad_(not frozen)
        if frozen:
            self.encoder.backbone.eval()
        if self.worker.world_size == 1 or self.config.training.chunk_rows is not None:
            return self.learner  # one worker, or cached steps, which synchronize themselves
        # A new wrapper for each phase: it registers the parameters with gradients when it is created.
        keep_shards_local(self.learner)
        # Buffers (batch norm, memory bank) are equal on all ranks by construction, so they are not broadcast.
        return DistributedDataParallel(self.learner, forward_sync_buffers=False)

    def refresh_class_vectors(
        self, sampler: BatchSampler | None, done: int, *, resumed: bool = False
    ) -> None:
        """Set new class vectors for a sampler of similar classes every `refresh_every_steps`.

        After resuming, it uses those of the checkpoint.
        """
        if isinstance(sampler, SimilarClassBatchSampler):
            assert isinstance(self.loss, WithClassVectors)
            n = sampler.refresh_every_steps
            if resumed and done >= n:
                sampler.set_class_vectors(self.loss.class_vectors())  # as of the checkpoint's step
            elif not resumed and done % n == 0:
                self.loss.freeze()
                sampler.set_class_vectors(self.loss.class_vectors())

    def read(self, checkpoint: Path) -> int:
        """Load a checkpoint; returns its number of steps."""
        return read_checkpoint(checkpoint, run=self.run, modules=self._modules(), optimizer=self.optimizer)

    def has_part(self) -> bool:
        """Whether this worker writes files: rank 0 does, others if they hold sharded proxies."""
        return has_part(self.worker.rank, self._modules())

    def write(self, folder: Path, step: int) -> None:
        """Write the files of this worker into an empty folder."""
        write_checkpoint(
            folder,
            step=step,
            run=self.run,
            modules=self._modules(),
            optimizer=self.optimizer,
            rank=self.worker.rank,
        )

    def _modules(self) -> dict[str, nn.Module]:
        modules = {
            "encoder": self.encoder,
            "loss": self.loss,
            "numbers": self.history,
            "average": self.average,
            "best": self.best,
        }
        return {name: module for name, module in modules.items() if module is not None}

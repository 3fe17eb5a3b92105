"""All that a run changes as it goes, and a checkpoint therefore holds."""

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
from dml.training.batch_norm import synchronise_batch_norm
from dml.training.build import build_loss
from dml.training.checkpoint import has_part, read_checkpoint, write_checkpoint
from dml.training.class_vectors import WithClassVectors
from dml.training.ghost_batch_norm import refuse_training_batch_norm
from dml.training.optimizer import build_optimizer
from dml.training.step import Learner
from dml.training.worker import Worker

logger = logging.getLogger(__name__)


def initial_encoder(config: ExperimentConfig) -> Encoder:
    """The encoder a run starts from, the same on every worker."""
    return Encoder(config.encoder, channels=config.preprocessing.channels, seed=config.seed)


class LossHistory(nn.Module):
    """The loss of every step so far, in every checkpoint, so that a resumed run knows those before."""

    losses: Tensor
    """(num_steps,) float64; NaN of the steps to come."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.full((num_steps,), torch.nan, dtype=torch.float64))

    def write(self, first_step: int, losses: Sequence[float]) -> None:
        """The losses of consecutive steps, from `first_step` on."""
        self.losses[first_step : first_step + len(losses)] = torch.tensor(losses, dtype=torch.float64)

    def mean_of_last(self, num_steps: int) -> float:
        """The mean over the run's last steps."""
        return float(np.mean(self.losses[-num_steps:].numpy()))


class TrainingState:
    """Encoder, loss, optimiser and the copies that are kept of the encoder.

    Args:
        config: the experiment.
        num_classes: C of the classes that are learnt from.
        worker: this process's place.
        run: identity of the run, which its checkpoints bear.
    """

    def __init__(self, config: ExperimentConfig, num_classes: int, worker: Worker, run: str) -> None:
        self.config, self.worker, self.run = config, worker, run
        training = config.training
        torch.manual_seed(config.seed)
        self.encoder = initial_encoder(config).to(worker.device)
        chunked = training.chunk_rows is not None
        if chunked and not training.ghost_batch_norm:
            refuse_training_batch_norm(self.encoder)
        if worker.world_size > 1 and not (chunked or config.encoder.freeze_batch_norm):
            synchronise_batch_norm(self.encoder, worker.device)
        if training.channels_last:
            self.encoder = self.encoder.to(memory_format=torch.channels_last)
        loss = build_loss(
            config.loss,
            dim=config.encoder.dim,
            num_classes=num_classes,
            seed=config.seed,
            memory=config.memory,
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
        """What would be shipped if training ended here: the average where there is one."""
        return self.encoder if self.average is None else self.average.encoder

    @property
    def shipped(self) -> Encoder:
        """What a finished run ships: the best where steps are validated."""
        return self.current if self.best is None else self.best.encoder

    @property
    def best_step(self) -> BestStep | None:
        """The step of the best weights so far."""
        validation = self.config.training.validation
        if self.best is None or validation is None or not int(self.best.step):
            return None
        return BestStep(step=int(self.best.step), metric=validation.metric, value=float(self.best.value))

    def begin(self, step: int) -> nn.Module:
        """Make ready to train from a step on, and return what `train_step` takes.

        In the first `freeze_backbone_steps` the backbone has no gradient, so that neither the optimiser nor
        weight decay moves it, and evaluates: its batch norm statistics rest and it drops nothing.
        """
        frozen = step < self.config.optimizer.freeze_backbone_steps
        self.learner.train()
        for parameter in self._trained_backbone:
            parameter.requires_grad_(not frozen)
        if frozen:
            self.encoder.backbone.eval()
        if self.worker.world_size == 1 or self.config.training.chunk_rows is not None:
            return self.learner  # alone, or in cached steps, which synchronise by themselves, once
        # Anew in each phase: it takes note of who has gradients once, when it is made.
        keep_shards_local(self.learner)
        # Buffers (batch norm's, a memory's) are equal on all ranks by their making: none is sent around.
        return DistributedDataParallel(self.learner, forward_sync_buffers=False)

    def refresh_class_vectors(
        self, sampler: BatchSampler | None, done: int, *, resumed: bool = False
    ) -> None:
        """Give a sampler of similar classes new class vectors when its batches of the old ones are used up.

        After resuming, those of the checkpoint.
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
        """Become what a checkpoint holds; returns the steps it has done."""
        return read_checkpoint(checkpoint, run=self.run, modules=self._modules(), optimizer=self.optimizer)

    def has_part(self) -> bool:
        """Whether this worker has something to write: the first has, others have their cut proxies."""
        return has_part(self.worker.rank, self._modules())

    def write(self, folder: Path, step: int) -> None:
        """Write this worker's part of it into an empty folder."""
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

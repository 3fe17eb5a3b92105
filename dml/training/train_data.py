"""Where a training loop's images come from: a dataset, or anything else that can name and order them."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dml.config import ExperimentConfig
from dml.data.batches import Batch, TrainingBatches
from dml.data.dataset import open_mapped, read_rows
from dml.data.sampling import BatchSampler, Stream
from dml.errors import InvalidData
from dml.preprocessing import preprocess
from dml.refs import DatasetRef
from dml.training.build import build_sampler
from dml.training.validation import ValidationSet, held_out_classes
from dml.training.worker import Worker

_DECODING_THREADS = min(os.cpu_count() or 1, 8)


class Batches(Protocol):
    """One worker's batches from a step on."""

    wait_s: float
    """Seconds that the loop has waited for them so far."""

    @property
    def sampler(self) -> BatchSampler | None:
        """What orders them, where it wants class vectors."""

    def __iter__(self) -> Iterator[Batch]: ...

    def close(self) -> None:
        """Stop making batches."""


class TrainData(Protocol):
    """What a run is trained on."""

    num_classes: int
    """C: labels go from 0 to C - 1."""
    validation: ValidationSet | None
    """Images of other classes, where the configuration wants validation."""

    def batches(self, worker: Worker, first_step: int) -> Batches:
        """This worker's batches, a pure function of the step, from `first_step` on."""

    def ids(self, positions: Sequence[int]) -> list[str]:
        """The names of images, by the positions that their batches gave."""


@dataclass(frozen=True)
class LabelledRows:
    """Rows' positions in the dataset, and class ids counted from 0."""

    positions: NDArray[np.int64]
    class_ids: NDArray[np.int64]

    @property
    def num_classes(self) -> int:
        return int(self.class_ids.max()) + 1 if len(self.class_ids) else 0

    def of_classes(self, chosen: NDArray[np.bool_]) -> "LabelledRows":
        """The rows of the classes chosen by a mask (C,), renumbered from 0 in the same order."""
        kept = chosen[self.class_ids]
        renumbered = np.cumsum(chosen) - 1
        return LabelledRows(self.positions[kept], renumbered[self.class_ids[kept]])


def read_training_rows(dataset: DatasetRef) -> LabelledRows:
    """Positions and contiguous class ids of a dataset's train split; raises InvalidData when it is empty."""
    rows = read_rows(dataset, split="train", columns=["class_id"])
    if not len(rows):
        raise InvalidData(
            f"Training needs rows in the split 'train'; dataset {dataset} has the "
            f"splits {sorted(dataset.splits)}. Ingest it with another split."
        )
    _, class_ids = np.unique(rows["class_id"].to_numpy(), return_inverse=True)
    return LabelledRows(rows["position"].to_numpy(), class_ids.astype(np.int64))


def require_trainable(config: ExperimentConfig, dataset: DatasetRef) -> None:
    """Refuse a train split of which a run could not make its batches, before anything is started for it.

    Raises:
        InvalidData: it is empty, or of one class.
        InvalidSetting: too few classes or images for the configuration's batches or its validation.
    """
    rows = read_training_rows(dataset)
    if rows.num_classes < 2:
        raise InvalidData(
            f"Training needs at least 2 classes; the split 'train' of {dataset} has "
            f"{rows.num_classes}. Ingest it with another --split, or more classes."
        )
    learnt: NDArray[np.bool_] = np.ones(len(rows.positions), dtype=np.bool_)
    if config.training.validation is not None:
        held_out = held_out_classes(rows.num_classes, config.training.validation.fraction, config.seed)
        learnt, rows = ~held_out[rows.class_ids], rows.of_classes(~held_out)
    build_sampler(
        config.sampler,
        dataset,
        rows.class_ids,
        learnt=learnt,
        stream=Stream(config.training.num_steps, seed=config.seed, world_size=config.training.num_workers),
    )


class DatasetTrainData:
    """The train split of a dataset version, decoded and augmented as the configuration says.

    Raises:
        InvalidData: the split is empty.
        InvalidSetting: validation would leave too few classes.
    """

    def __init__(self, config: ExperimentConfig, dataset: DatasetRef) -> None:
        self.config, self.dataset = config, dataset
        rows = read_training_rows(dataset)
        self.learnt: NDArray[np.bool_] = np.ones(len(rows.positions), dtype=np.bool_)
        self.validation: ValidationSet | None = None
        wanted = config.training.validation
        if wanted is not None:
            held_out = held_out_classes(rows.num_classes, wanted.fraction, config.seed)
            self.learnt = ~held_out[rows.class_ids]
            others, rows = rows.of_classes(held_out), rows.of_classes(~held_out)
            self.validation = ValidationSet(others.class_ids, lambda part: self._images(others, part))
        self.mapped = open_mapped(dataset)
        self.rows = rows
        self.num_classes = rows.num_classes

    def sampler(self, worker: Worker, first_step: int) -> BatchSampler:
        """What orders this worker's batches.

        Raises:
            InvalidSetting: the data do not allow such batches.
        """
        config = self.config
        return build_sampler(
            config.sampler,
            self.dataset,
            self.rows.class_ids,
            learnt=self.learnt,
            stream=Stream(config.training.num_steps, config.seed, worker.rank, worker.world_size, first_step),
        )

    def batches(self, worker: Worker, first_step: int) -> Batches:
        config = self.config
        return TrainingBatches(
            self.mapped,
            positions=self.rows.positions,
            class_ids=self.rows.class_ids,
            sampler=self.sampler(worker, first_step),
            preprocessing=config.preprocessing,
            augmentation=config.augmentation,
            seed=config.seed,
            pinned=worker.device.type == "cuda",
        )

    def ids(self, positions: Sequence[int]) -> list[str]:
        ids: list[str] = read_rows(self.dataset, columns=["id"])["id"].take(positions).to_pylist()
        return ids

    def _images(self, rows: LabelledRows, part: NDArray[np.int64]) -> Tensor:
        contents = self.mapped.images(rows.positions[part])
        with ThreadPoolExecutor(_DECODING_THREADS) as pool:
            return torch.stack(list(pool.map(lambda c: preprocess(c, self.config.preprocessing), contents)))

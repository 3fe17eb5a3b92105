"""Training data of the loop: the train split of a dataset, or any other class with the same interface."""

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
from dml.data.dataset import read_rows
from dml.data.mapped import open_mapped
from dml.data.sampling import BatchSampler, Stream
from dml.errors import InvalidData
from dml.preprocessing import preprocess
from dml.refs import DatasetRef
from dml.training.build import build_sampler
from dml.training.validation import ValidationSet, held_out_classes
from dml.training.worker import Worker

_DECODING_THREADS = min(os.cpu_count() or 1, 8)
_MOST_PROCESSES = 16


class Batches(Protocol):
    """The batches of one worker, starting at a step."""

    wait_s: float
    """Seconds that the loop has waited for batches so far."""

    @property
    def sampler(self) -> BatchSampler | None:
        """The sampler of the batches, if it needs class vectors."""

    def __iter__(self) -> Iterator[Batch]: ...

    def close(self) -> None:
        """Stop loading batches."""


class TrainData(Protocol):
    """The training data of a run."""

    num_classes: int
    """C: labels go from 0 to C - 1."""
    validation: ValidationSet | None
    """Images of held-out classes, if the configuration has validation."""

    def batches(self, worker: Worker, first_step: int) -> Batches:
        """The batches of this worker from `first_step`, a pure function of the step."""

    def ids(self, positions: Sequence[int]) -> list[str]:
        """The ids of images, by their positions in the batches."""


@dataclass(frozen=True)
class LabelledRows:
    """Rows' positions in the dataset, and class ids counted from 0."""

    positions: NDArray[np.int64]
    class_ids: NDArray[np.int64]

    @property
    def num_classes(self) -> int:
        return int(self.class_ids.max()) + 1 if len(self.class_ids) else 0

    def select_classes(self, mask: NDArray[np.bool_]) -> "LabelledRows":
        """The rows of the classes in a mask (C,), with classes renumbered from 0 in the same order."""
        is_selected = mask[self.class_ids]
        renumbered = np.cumsum(mask) - 1
        return LabelledRows(self.positions[is_selected], renumbered[self.class_ids[is_selected]])


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
    """Check that the train split allows the batches of a configuration, before anything is started.

    Raises:
        InvalidData: the split is empty, or has one class.
        InvalidSetting: there are too few classes or images for the batches or for validation.
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
        learnt, rows = ~held_out[rows.class_ids], rows.select_classes(~held_out)
    build_sampler(
        config.sampler,
        dataset,
        rows.class_ids,
        learnt=learnt,
        stream=Stream(config.training.num_steps, seed=config.seed, world_size=config.training.num_workers),
    )


class DatasetTrainData:
    """The train split of a dataset version, decoded and augmented by the configuration.

    Raises:
        InvalidData: the split is empty.
        InvalidSetting: validation leaves too few classes for training.
    """

    def __init__(self, config: ExperimentConfig, dataset: DatasetRef) -> None:
        self.config, self.dataset = config, dataset
        rows = read_training_rows(dataset)
        self.learnt: NDArray[np.bool_] = np.ones(len(rows.positions), dtype=np.bool_)
        self.validation: ValidationSet | None = None
        validation = config.training.validation
        if validation is not None:
            held_out = held_out_classes(rows.num_classes, validation.fraction, config.seed)
            self.learnt = ~held_out[rows.class_ids]
            others, rows = rows.select_classes(held_out), rows.select_classes(~held_out)
            self.validation = ValidationSet(others.class_ids, lambda part: self._images(others, part))
        self.mapped = open_mapped(dataset)
        self.rows = rows
        self.num_classes = rows.num_classes

    def sampler(self, worker: Worker, first_step: int) -> BatchSampler:
        """The sampler of this worker.

        Raises:
            InvalidSetting: the data do not allow these batches.
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
            num_processes=_loading_processes(config.training.loading_processes, worker),
        )

    def ids(self, positions: Sequence[int]) -> list[str]:
        ids: list[str] = read_rows(self.dataset, columns=["id"])["id"].take(positions).to_pylist()
        return ids

    def _images(self, rows: LabelledRows, part: NDArray[np.int64]) -> Tensor:
        contents = self.mapped.images(rows.positions[part])
        with ThreadPoolExecutor(_DECODING_THREADS) as pool:
            return torch.stack(list(pool.map(lambda c: preprocess(c, self.config.preprocessing), contents)))


def _loading_processes(wanted: int | None, worker: Worker) -> int:
    """Beside a CPU's training, processes would only take its cores; fewer than three gain nothing."""
    if wanted is not None:
        return wanted
    share = min((os.cpu_count() or 1) // worker.local_world_size, _MOST_PROCESSES)
    return share if worker.device.type == "cuda" and share > 2 else 0

"""Batches of decoded, augmented images, made ahead of the training step that will want them."""

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dml.config import AugmentationConfig, PreprocessingConfig
from dml.data.dataset import MappedDataset
from dml.data.sampler import PKBatchSampler
from dml.data.transforms import augment, chance_of
from dml.preprocessing import decode

_AHEAD = 3

Batch = tuple[Tensor, Tensor, NDArray[np.int64]]
"""Images (B, C, H, W) float32, labels (B,) int64, positions (B,) of the rows in the dataset."""


class TrainingBatches:
    """Iterates a sampler's batches, decoded in threads: Pillow and torch release the interpreter's lock.

    Args:
        mapped: where the images are.
        positions: (N,) a training row's position in the dataset.
        class_ids: (N,) a training row's class.
        sampler: yields batches of training rows.
        preprocessing: size, colours, normalisation.
        augmentation: what training adds to it.
        seed: of the augmentation.
    """

    def __init__(
        self,
        mapped: MappedDataset,
        *,
        positions: NDArray[np.int64],
        class_ids: NDArray[np.int64],
        sampler: PKBatchSampler,
        preprocessing: PreprocessingConfig,
        augmentation: AugmentationConfig,
        seed: int,
    ) -> None:
        self.mapped, self.positions, self.class_ids = mapped, positions, class_ids
        self.sampler, self.preprocessing = sampler, preprocessing
        self.augmentation, self.seed = augmentation, seed
        self.wait_s = 0.0
        """Seconds that `__iter__` has waited for a batch so far."""
        self._pool = ThreadPoolExecutor(max(os.cpu_count() or 1, 2), thread_name_prefix="batches")

    def __iter__(self) -> Iterator[Batch]:
        waiting: deque[Future[Batch]] = deque()
        steps = iter(range(self.sampler.first_step, self.sampler.num_steps))
        for step in steps:
            waiting.append(self._pool.submit(self._make, step))
            if len(waiting) >= _AHEAD:
                break
        while waiting:
            began = time.perf_counter()
            batch = waiting.popleft().result()
            self.wait_s += time.perf_counter() - began
            for step in steps:
                waiting.append(self._pool.submit(self._make, step))
                break
            yield batch

    def _make(self, step: int) -> Batch:
        rows = self.sampler.batch(step)
        images = [self._image(step, int(row)) for row in rows]
        return torch.stack(images), torch.from_numpy(self.class_ids[rows]), self.positions[rows]

    def _image(self, step: int, row: int) -> Tensor:
        image = decode(self.mapped.image(int(self.positions[row])), self.preprocessing.color)
        return augment(image, self.augmentation, self.preprocessing, chance_of(self.seed, step, row))

    def close(self) -> None:
        """Stop making batches; those begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

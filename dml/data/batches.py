"""Prefetched training batches: decoded, augmented images, made before the step that uses them."""

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
from dml.data.dataset import MappedDataset, read_rows
from dml.data.sampling import BatchSampler
from dml.data.transforms import augment, augmentation_rng
from dml.errors import InvalidData
from dml.preprocessing import decode

_MAX_THREADS = 8

Batch = tuple[Tensor, Tensor, NDArray[np.int64]]
"""Images (B, C, H, W) float32, labels (B,) int64, positions (B,) of the rows in the dataset."""


class TrainingBatches:
    """Iterates over a sampler's batches; threads decode them, since Pillow releases the GIL.

    The content of a batch does not depend on the number of threads, nor on which of W workers makes it.

    Args:
        mapped: the images.
        positions: (N,) position in the dataset of each training row.
        class_ids: (N,) class of each training row.
        sampler: yields batches of training rows.
        preprocessing: size, colors, normalization.
        augmentation: random changes for training.
        seed: seed of the augmentation.
        pinned: return pinned memory, for asynchronous copies to a GPU.
        num_threads: None for this machine's cores, at most 8.
    """

    def __init__(
        self,
        mapped: MappedDataset,
        *,
        positions: NDArray[np.int64],
        class_ids: NDArray[np.int64],
        sampler: BatchSampler,
        preprocessing: PreprocessingConfig,
        augmentation: AugmentationConfig,
        seed: int,
        pinned: bool = False,
        num_threads: int | None = None,
    ) -> None:
        self.mapped, self.positions = mapped, positions
        self.class_ids = class_ids.astype(np.int64)
        self.sampler, self.preprocessing = sampler, preprocessing
        self.augmentation, self.seed, self.pinned = augmentation, seed, pinned
        self.wait_s = 0.0
        """Total seconds that `__iter__` has waited for batches."""
        self.num_threads = num_threads or min(os.cpu_count() or 1, _MAX_THREADS)
        self._pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="batches")

    def __iter__(self) -> Iterator[Batch]:
        first, end = self.sampler.stream.first_step, self.sampler.stream.num_steps
        num_ahead = self.num_threads + 1  # one per thread, and one finished batch
        ahead: deque[Future[Batch]] = deque()
        for step in range(first, end):
            began = time.perf_counter()
            known = min(step + num_ahead, self.sampler.known_until(step))
            ahead.extend(self._begin(later) for later in range(step + len(ahead), known))
            batch = ahead.popleft().result()
            self.wait_s += time.perf_counter() - began
            yield batch

    def _begin(self, step: int) -> Future[Batch]:
        return self._pool.submit(self._make, step, self.sampler.batch(step))

    def _make(self, step: int, rows: NDArray[np.int64]) -> Batch:
        first_index = self.sampler.stream.rank * len(rows)
        positions = self.positions[rows]
        images = [
            self._image(int(position), augmentation_rng(self.seed, step, index))
            for index, position in enumerate(positions, start=first_index)
        ]
        batch, labels = torch.stack(images), torch.from_numpy(self.class_ids[rows])
        if self.pinned:
            batch, labels = batch.pin_memory(), labels.pin_memory()
        return batch, labels, positions

    def _image(self, position: int, rng: np.random.Generator) -> Tensor:
        try:
            image = decode(self.mapped.image(position), self.preprocessing.color)
        except InvalidData as error:
            id_ = read_rows(self.mapped.ref, columns=["id"])["id"][position].as_py()
            raise InvalidData(f"Image {id_!r} of {self.mapped.ref.uri}: {error}") from error
        return augment(image, self.augmentation, self.preprocessing, rng)

    def close(self) -> None:
        """Stop making batches, and wait for the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

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
from dml.data.image_processes import NUM_BUFFERS, ImageProcesses
from dml.data.mapped import MappedDataset
from dml.data.sampling import BatchSampler
from dml.data.transforms import training_view

_MAX_THREADS = 8

Batch = tuple[Tensor, Tensor, NDArray[np.int64]]
"""Images (B, C, H, W) float32, labels (B,) int64, positions (B,) of the rows in the dataset."""


class TrainingBatches:
    """Iterates over a sampler's batches, decoded by threads, or by processes where a GPU would wait for them.

    The content of a batch does not depend on the number of threads or processes, nor on which of W workers
    makes it.

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
        num_processes: that decode instead of the threads; 0: none.
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
        num_processes: int = 0,
    ) -> None:
        self.mapped, self.positions = mapped, positions
        self.class_ids = class_ids.astype(np.int64)
        self.sampler, self.preprocessing = sampler, preprocessing
        self.augmentation, self.seed, self.pinned = augmentation, seed, pinned
        self.wait_s = 0.0
        """Total seconds that `__iter__` has waited for batches."""
        self._processes: ImageProcesses | None = None
        if num_processes:
            self._processes = ImageProcesses(
                mapped,
                preprocessing,
                augmentation,
                seed=seed,
                batch_size=sampler.batch_size // sampler.stream.world_size,
                num_processes=num_processes,
            )
            num_threads = NUM_BUFFERS
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
        positions = self.positions[rows]
        images, labels = self._images(step, positions), torch.from_numpy(self.class_ids[rows])
        return images, labels.pin_memory() if self.pinned else labels, positions

    def _images(self, step: int, positions: NDArray[np.int64]) -> Tensor:
        first_index = self.sampler.stream.rank * len(positions)
        if self._processes is not None:
            return self._processes.images(step, first_index, positions, pinned=self.pinned)
        views = [
            training_view(
                self.mapped, position, self.augmentation, self.preprocessing, (self.seed, step, index)
            )
            for index, position in enumerate(positions.tolist(), start=first_index)
        ]
        batch = torch.stack(views)
        return batch.pin_memory() if self.pinned else batch

    def close(self) -> None:
        """Stop making batches, and wait for the threads and processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._processes is not None:
            self._processes.close()

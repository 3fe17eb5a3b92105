"""Images decoded and augmented by processes into shared memory: Python's threads would take turns.

On 16 cores, 96 pixels: 8 threads make 1,276 images/s, one 1,813, 8 processes 15,542; 224 pixels: 997, 418 and
2,875, 16 processes 3,528 (`python -m benchmarks.loading`).
"""

import os
import queue
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dml.config import AugmentationConfig, PreprocessingConfig
from dml.data.mapped import MappedDataset
from dml.data.transforms import training_view
from dml.errors import TrainingFailed

NUM_BUFFERS = 3
"""Batches in the making: one is copied away, and with two no process waits for another's last image."""


class ImageProcesses:
    """Processes that share a memory with this one; a thread of this one asks for a batch at a time.

    Args:
        mapped: the images.
        preprocessing: size, colors, normalization.
        augmentation: random changes for training.
        seed: seed of the augmentation.
        batch_size: images of a batch, at most.
        num_processes: each decodes its part of every batch.
    """

    def __init__(
        self,
        mapped: MappedDataset,
        preprocessing: PreprocessingConfig,
        augmentation: AugmentationConfig,
        *,
        seed: int,
        batch_size: int,
        num_processes: int,
    ) -> None:
        from loky import ProcessPoolExecutor  # does not import the caller's script again, as spawn does

        width, height = preprocessing.size
        shape = (NUM_BUFFERS, batch_size, preprocessing.channels, height, width)
        # Anonymous: it ends with this process however that ends, and a small /dev/shm does not matter.
        self._memory = os.memfd_create("images")
        os.ftruncate(self._memory, 4 * int(np.prod(shape)))
        path = f"/proc/{os.getpid()}/fd/{self._memory}"
        self._buffers = np.memmap(path, np.float32, "r+", shape=shape)
        self._unused: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(NUM_BUFFERS):
            self._unused.put(number)
        self._num_processes = num_processes
        self._pool = ProcessPoolExecutor(
            num_processes,
            initializer=_begin,
            initargs=(mapped, preprocessing, augmentation, seed, path, shape),
        )

    def images(self, step: int, first_index: int, positions: NDArray[np.int64], *, pinned: bool) -> Tensor:
        """The (B, C, H, W) images of a batch.

        Args:
            step: of the batch; augmentation depends on it.
            first_index: of the batch's first image in the global batch.
            positions: (B,) rows of the dataset.
            pinned: in pinned memory.

        Raises:
            InvalidData: an image does not decode.
            TrainingFailed: a process was killed.
        """
        number = self._unused.get()
        try:
            bounds = np.linspace(0, len(positions), self._num_processes + 1).astype(int)
            parts = [
                self._pool.submit(_fill, number, start, step, first_index + start, positions[start:stop])
                for start, stop in pairwise(bounds)
                if start < stop
            ]
            try:
                for part in parts:
                    part.result()
            except BrokenProcessPool as error:
                raise TrainingFailed(
                    "The processes that decode images must live; one was killed, as a rule for want of "
                    "memory. Free memory, or set training.loading_processes to a smaller number, or 0."
                ) from error
            finally:
                for part in parts:
                    part.cancel()
                wait(parts)  # none may write into the buffer when the next batch does
            batch = torch.empty(self._buffers.shape[1:], pin_memory=pinned)[: len(positions)]
            return batch.copy_(torch.from_numpy(self._buffers[number, : len(positions)]))
        finally:
            self._unused.put(number)

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=True)
        os.close(self._memory)


class _Opened:
    """What a process keeps from one batch to the next."""

    mapped: MappedDataset
    preprocessing: PreprocessingConfig
    augmentation: AugmentationConfig
    seed: int
    buffers: NDArray[np.float32]


def _begin(
    mapped: MappedDataset,
    preprocessing: PreprocessingConfig,
    augmentation: AugmentationConfig,
    seed: int,
    path: str,
    shape: tuple[int, ...],
) -> None:
    torch.set_num_threads(1)
    _Opened.mapped, _Opened.preprocessing, _Opened.augmentation = mapped, preprocessing, augmentation
    _Opened.seed, _Opened.buffers = seed, np.memmap(path, np.float32, "r+", shape=shape)


def _fill(number: int, start: int, step: int, first_index: int, positions: NDArray[np.int64]) -> None:
    """Write the images of these positions into a buffer, from row `start` on."""
    for offset, position in enumerate(positions.tolist()):
        view = training_view(
            _Opened.mapped,
            position,
            _Opened.augmentation,
            _Opened.preprocessing,
            (_Opened.seed, step, first_index + offset),
        )
        _Opened.buffers[number, start + offset] = view.numpy()

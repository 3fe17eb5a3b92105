"""Base class of batch samplers: a stream of global batches, and a rank's part of each batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from dml.data.sampling.permutations import Integers
from dml.errors import InvalidSetting


@dataclass(frozen=True)
class Stream:
    """The steps and the rank of a sampler.

    Args:
        num_steps: number of batches.
        seed: determines the batches, independent of rank and world_size.
        rank: rank of this worker, which gets one part of each global batch.
        world_size: W, the number of ranks that share a global batch.
        first_step: first step of the iteration; a late step costs no more than the first.

    Raises:
        InvalidSetting: rank or first_step is out of range.
    """

    num_steps: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    first_step: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise InvalidSetting(f"rank must be in [0, {self.world_size}); got {self.rank}.")
        if not 0 <= self.first_step <= self.num_steps:
            raise InvalidSetting(f"first_step must be in [0, {self.num_steps}]; got {self.first_step}.")


class BatchSampler(ABC):
    """Global batches as a pure function of (seed, step): iterate it, or hand it to a DataLoader.

    The stream is the same for any number of workers W; rank r takes the r-th of W equal blocks of each batch,
    so every rank has the same number of rows and batches, and no DistributedSampler is needed.

    Args:
        batch_size: B, rows of a global batch; a multiple of W.
        stream: the steps, and this rank's part.

    Raises:
        InvalidSetting: B is not a multiple of W.
    """

    def __init__(self, batch_size: int, stream: Stream) -> None:
        if remainder := batch_size % stream.world_size:
            nearest = batch_size - remainder or stream.world_size
            raise InvalidSetting(
                f"Every rank gets the same number of rows, so the batch must be a multiple of world_size; "
                f"got {batch_size} and {stream.world_size}. Nearest: {nearest}."
            )
        self.batch_size, self.stream = batch_size, stream

    def __len__(self) -> int:
        return self.stream.num_steps - self.stream.first_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.stream.first_step, self.stream.num_steps):
            yield self.batch(step).tolist()

    def batch(self, step: int) -> Integers:
        """(B/W,) rows of this rank at a step."""
        share = self.batch_size // self.stream.world_size
        return self._rows(step, self.stream.rank * share, (self.stream.rank + 1) * share)

    def known_until(self, step: int) -> int:
        """The first step that cannot be requested before `step` is done; most samplers know all steps."""
        del step
        return self.stream.num_steps

    @abstractmethod
    def _rows(self, step: int, begin: int, end: int) -> Integers:
        """Rows begin to end - 1 of a step's global batch."""

"""What every sampler here is: a stream of global batches, of which a rank takes its part."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from dml.data.sampling.permutations import Integers
from dml.errors import InvalidSetting


@dataclass(frozen=True)
class Stream:
    """Which part of a run's batches a sampler gives.

    Args:
        num_steps: how many batches there are.
        seed: decides the batches; rank and world_size do not.
        rank: whose part of each global batch.
        world_size: W, how many ranks share a global batch.
        first_step: where iteration starts; starting at a late step costs what starting at the first does.

    Raises:
        InvalidSetting: rank or first_step lie outside their range.
    """

    num_steps: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    first_step: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise InvalidSetting(f"rank must lie in [0, {self.world_size}); got {self.rank}.")
        if not 0 <= self.first_step <= self.num_steps:
            raise InvalidSetting(f"first_step must lie in [0, {self.num_steps}]; got {self.first_step}.")


class BatchSampler(ABC):
    """Global batches as a pure function of (seed, step): iterate it, or hand it to a DataLoader.

    The stream is the same for any number of workers W; rank r takes the r-th of W equal blocks of each batch,
    so every rank has equally many rows and equally many batches, and no DistributedSampler is needed.

    Args:
        batch_size: B, rows of a global batch; a multiple of W.
        stream: which batches, and whose part of them.

    Raises:
        InvalidSetting: B is not a multiple of W.
    """

    def __init__(self, batch_size: int, stream: Stream) -> None:
        if remainder := batch_size % stream.world_size:
            nearest = batch_size - remainder or stream.world_size
            raise InvalidSetting(
                f"Every rank gets equally many rows, so the batch must be a multiple of world_size; got "
                f"{batch_size} and {stream.world_size}. Nearest: {nearest}."
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
        """Steps from this one on cannot be asked for before `step` is done; most samplers know them all."""
        del step
        return self.stream.num_steps

    @abstractmethod
    def _rows(self, step: int, begin: int, end: int) -> Integers:
        """Rows begin to end - 1 of a step's global batch."""

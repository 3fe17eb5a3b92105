"""What every sampler here is: a stream of global batches, of which a rank takes its part."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from dml.data.sampling.permutations import Integers
from dml.errors import InvalidSetting


class BatchStream(ABC):
    """Global batches as a pure function of (seed, step): iterate it, or hand it to a DataLoader.

    The stream is the same for any number of workers W; rank r takes the r-th of W equal blocks of each batch,
    so every rank has equally many rows and equally many batches, and no DistributedSampler is needed.

    Args:
        batch_size: B, rows of a global batch.
        seed: decides the stream.
        rank: whose part of each global batch.
        world_size: W, must divide B.
        num_steps: how many batches there are.
        first_step: where iteration starts; starting at a late step costs what starting at the first does.

    Raises:
        InvalidSetting: B is not a multiple of W, or rank or first_step lie outside their range.
    """

    def __init__(
        self, *, batch_size: int, seed: int, rank: int, world_size: int, num_steps: int, first_step: int
    ) -> None:
        if batch_size % world_size:
            raise InvalidSetting(
                f"Every rank gets equally many rows, so the batch must be a multiple of world_size; got "
                f"{batch_size} and {world_size}. Nearest below: {batch_size - batch_size % world_size}."
            )
        if not 0 <= rank < world_size:
            raise InvalidSetting(f"rank must lie in [0, {world_size}); got {rank}.")
        if not 0 <= first_step <= num_steps:
            raise InvalidSetting(f"first_step must lie in [0, {num_steps}]; got {first_step}.")
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.num_steps, self.first_step = num_steps, first_step

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.num_steps):
            yield self.batch(step).tolist()

    def batch(self, step: int) -> Integers:
        """(B/W,) rows of this rank at a step."""
        share = self.batch_size // self.world_size
        return self._rows(step, self.rank * share, (self.rank + 1) * share)

    def known_until(self, step: int) -> int:
        """Steps from this one on cannot be asked for before `step` is done; most samplers know them all."""
        del step
        return self.num_steps

    @abstractmethod
    def _rows(self, step: int, begin: int, end: int) -> Integers:
        """Rows begin to end - 1 of a step's global batch."""

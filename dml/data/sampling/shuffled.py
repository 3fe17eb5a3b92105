"""Shuffled batches, for losses that need no two images of a class in a batch."""

from dml.data.sampling.permutations import Integers, Permutations, hash_of
from dml.data.sampling.stream import BatchStream
from dml.errors import InvalidSetting

_OF_ROWS = 3


class ShuffledBatchSampler(BatchStream):
    """Every row once per epoch, whatever its class.

    What is left of an epoch and fills no batch opens the next epoch's first batch, in which no row comes
    twice: nothing is dropped and nothing repeated.

    Args:
        num_rows: N, at least B.
        batch_size: B, of the global batch.
        seed, rank, world_size, num_steps, first_step: as `BatchStream`.

    Raises:
        InvalidSetting: as `BatchStream`, or there are fewer than B rows.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_steps: int,
        first_step: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_steps=num_steps,
            first_step=first_step,
        )
        if num_rows < batch_size:
            raise InvalidSetting(
                f"A batch of {batch_size} rows needs as many in the data; there are {num_rows}. Lower "
                "batch_size."
            )
        self.num_rows = num_rows
        self._permutations = Permutations()

    def _rows(self, step: int, begin: int, end: int) -> Integers:
        key = hash_of(self.seed, _OF_ROWS)
        return self._permutations.window(self.num_rows, self.batch_size, step, key)[begin:end]

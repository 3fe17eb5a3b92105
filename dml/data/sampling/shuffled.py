"""Shuffled batches, for losses that do not need two images per class in a batch."""

from dml.data.sampling.permutations import ROW_STREAM, Integers, Permutations, hash_of
from dml.data.sampling.stream import BatchSampler, Stream
from dml.errors import InvalidSetting


class ShuffledBatchSampler(BatchSampler):
    """Every row once per epoch, independent of its class.

    Rows of an epoch that do not fill a batch start the first batch of the next epoch, which has no
    duplicates: no row is dropped or repeated.

    Args:
        num_rows: N, at least B.
        batch_size: B, of the global batch.
        stream: the steps, and this rank's part.

    Raises:
        InvalidSetting: as `BatchSampler`, or there are fewer than B rows.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        batch_size: int,
        stream: Stream,
    ) -> None:
        super().__init__(batch_size, stream)
        if num_rows < batch_size:
            raise InvalidSetting(
                f"A batch of {batch_size} rows needs as many in the data; there are {num_rows}. Lower "
                "batch_size."
            )
        self.num_rows = num_rows
        self._permutations = Permutations()

    def _rows(self, step: int, begin: int, end: int) -> Integers:
        key = hash_of(self.stream.seed, ROW_STREAM)
        return self._permutations.window(self.num_rows, self.batch_size, step, key)[begin:end]

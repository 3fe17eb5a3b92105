"""Block sizes of large matrices: a block fits the CPU cache, or is large on a GPU to save kernel launches."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

# 256 MiB of float32; about six such blocks exist at the same time, 1.5 GiB. On a GPU every kernel launch
# costs microseconds: at B = 16,384 MultiSimilarity runs 570 operators with these blocks and 50,000 with CPU
# blocks.
_ACCELERATOR_VALUES = 1 << 26
_limit: ContextVar[int | None] = ContextVar("_limit", default=None)


def block_values(device: torch.device, on_cpu: int) -> int:
    """The maximum number of values in a block.

    Args:
        device: device of the block.
        on_cpu: the maximum on a CPU.
    """
    limit = _limit.get()
    if limit is not None:
        return limit
    return on_cpu if device.type == "cpu" else _ACCELERATOR_VALUES


def block_rows(device: torch.device, num_columns: int, *, on_cpu: int, at_least: int) -> int:
    """The number of rows in a block.

    Args:
        device: device of the block.
        num_columns: columns of the matrix.
        on_cpu: the maximum number of values on a CPU.
        at_least: the minimum number of rows; not applied inside `max_block_values`.
    """
    rows = block_values(device, on_cpu) // max(num_columns, 1)
    return max(rows, at_least if _limit.get() is None else 1)


@contextmanager
def max_block_values(num_values: int) -> Iterator[None]:
    """Limit all blocks to `num_values` values, or one row. Values and gradients do not depend on it."""
    token = _limit.set(num_values)
    try:
        yield
    finally:
        _limit.reset(token)

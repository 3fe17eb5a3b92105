"""How many values a block of a matrix holds: what fits a CPU cache; on a GPU many, for few launches."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

# 256 MiB of float32; of the half dozen that live at once, 1.5 GiB. A GPU has no cache to fit, but every
# launch costs microseconds: at B = 16,384 MultiSimilarity takes 570 operators in such blocks, else 50,000.
_ACCELERATOR_VALUES = 1 << 26
_limit: ContextVar[int | None] = ContextVar("_limit", default=None)


def block_values(device: torch.device, on_cpu: int) -> int:
    """The most values a block may hold.

    Args:
        device: where it is.
        on_cpu: the most on a CPU.
    """
    limit = _limit.get()
    if limit is not None:
        return limit
    return on_cpu if device.type == "cpu" else _ACCELERATOR_VALUES


def block_rows(device: torch.device, num_columns: int, *, on_cpu: int, at_least: int) -> int:
    """How many rows of so many columns a block holds; arguments as `block_values`."""
    rows = block_values(device, on_cpu) // max(num_columns, 1)
    return max(rows, at_least if _limit.get() is None else 1)


@contextmanager
def max_block_values(num_values: int) -> Iterator[None]:
    """Within it blocks hold at most so many values, or one row; no value and no gradient depends on it."""
    token = _limit.set(num_values)
    try:
        yield
    finally:
        _limit.reset(token)

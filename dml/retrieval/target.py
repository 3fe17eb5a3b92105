"""The demands on an index before it is built: rows, recall, latency, memory and machines, checked."""

import math
from dataclasses import dataclass

from dml.errors import InvalidSetting

MAX_ROWS, MAX_DIM = 10**12, 1 << 16
MAX_MACHINES = 4096
MIN_RECALL = 0.5


@dataclass(frozen=True)
class Target:
    """The demands on an index.

    Raises:
        InvalidSetting: a value that has no meaning, with what is possible.
    """

    rows: int
    dim: int
    recall: float = 0.95
    """recall@10 against exact search, (0.5, 1]."""
    latency_ms: float = 20.0
    """Milliseconds of one query on one thread, at most."""
    memory_bytes: int = 64 * 10**9
    """Of each machine, for the index."""
    filters: int = 0
    """Columns that searches are narrowed by."""
    gpu_bytes: int = 0
    """Memory of each machine's GPU; 0: there is none."""
    machines: int | None = None
    """At most; None: as many as it takes."""

    def __post_init__(self) -> None:
        _require("rows", self.rows, 1, MAX_ROWS, "vectors")
        _require("dim", self.dim, 1, MAX_DIM, "dimensions")
        _require("memory", self.memory_bytes, 10**6, 10**18, "bytes, as 64G")
        _require("filters", self.filters, 0, 10**4, "columns")
        if self.gpu_bytes:
            _require("gpu-memory", self.gpu_bytes, 10**6, 10**18, "bytes, as 80G")
        _require("machines", 1 if self.machines is None else self.machines, 1, MAX_MACHINES, "machines")
        _require("recall", self.recall, MIN_RECALL, 1.0, "the share of the 10 nearest that is found, as 0.95")
        if not 0 < self.latency_ms < math.inf:
            raise InvalidSetting(
                f"latency-ms must be milliseconds above 0; got {self.latency_ms}. Name one, as 20."
            )


def _require(name: str, value: float, low: float, high: float, what: str) -> None:
    if not low <= value <= high:  # NaN neither
        raise InvalidSetting(f"{name} must be {low:g} to {high:g}, {what}; got {value:g}.")

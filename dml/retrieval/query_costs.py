"""What a query costs, exactly and by the index: counts of items in, microseconds of one thread out.

exact(n)         = a + b n                        n: matching items; b is less for a long range of rows
index(p, ids, m) = c0 + c1 p + c2 ids + c3 m      p: lists, ids: their items, m: matches among these
"""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

_Microseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Costs(BaseModel):
    """Cost model of one query on one thread, fitted by timing an index on the machine that built it.

    Example:
        >>> exact = {"scan_us": 8, "scan_row_us": 0.05, "range_row_us": 0.03}
        >>> index = {"index_us": 10, "list_us": 0.5, "id_us": 0.004, "match_us": 0.05}
        >>> costs = Costs(processor="any", **exact, **index)
        >>> costs.scan(1000), costs.scan(1000, is_range=True), costs.index(lists=16, ids=4000, matches=400)
        (58.0, 38.0, 54.0)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str = Field(description="name of the processor that was timed")
    scan_us: _Microseconds = Field(description="exact: each query")
    scan_row_us: _Microseconds = Field(description="exact: each matching item")
    range_row_us: _Microseconds = Field(description="exact: each matching item of a long range of rows")
    index_us: _Microseconds = Field(description="index: each query")
    list_us: _Microseconds = Field(description="index: each list")
    id_us: _Microseconds = Field(description="index: each item of the lists, which is checked")
    match_us: _Microseconds = Field(description="index: each matching item of the lists, which is compared")

    def scan(self, count: int, *, is_range: bool = False) -> float:
        """Microseconds of comparing with all matches; `is_range`: they are a long range of rows."""
        return self.scan_us + (self.range_row_us if is_range else self.scan_row_us) * count

    def index(self, *, lists: float, ids: float, matches: float) -> float:
        """Microseconds of scanning inverted lists under a filter."""
        return self.index_us + self.list_us * lists + self.id_us * ids + self.match_us * matches

    def lists(self, *, ids: NDArray[np.int64], matches: NDArray[np.int64]) -> NDArray[np.float64]:
        """(L,) microseconds of scanning each list, by how many items it has, and how many match."""
        each: NDArray[np.float64] = self.list_us + self.id_us * ids + self.match_us * matches
        return each

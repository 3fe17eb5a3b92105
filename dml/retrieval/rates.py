"""What a machine does per unit of time, measured by `probe` or for reference."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PROBE_DIM = 128
PROBE_GRAPH_ROWS = 20_000
PROBE_LINKS = 32

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Rates(BaseModel):
    """Times of 128-dimensional vectors; those of queries on one thread, those of builds on all `threads`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    threads: int = Field(gt=0)
    measured: bool = Field(description="false: figures of another machine, for reference")
    scan_row_ns: _Positive = Field(description="exact search: each row")
    list_us: dict[str, _Positive] = Field(description="inverted lists: each that is scanned, by its code")
    list_row_ns: dict[str, _Positive] = Field(description="inverted lists: each row, by its code")
    centroid_ns: _Positive = Field(description="each centroid a query is compared with")
    multiply_ps: _Positive = Field(description="picoseconds a multiplication when rows are assigned to lists")
    compare_ns: _Positive = Field(description="comparing in full with a row somewhere in memory")
    insert_us: _Positive = Field(description="inserting a row into a graph of 20,000 rows, 32 links")
    visit_us: _Positive = Field(description="each of `efSearch` in that graph")
    random_read_us: _Positive = Field(description="reading 4 KiB somewhere in a file")
    read_bytes_per_s: _Positive = Field(description="reading a file in order")


REFERENCE = Rates(
    processor="an x86-64 server core with AVX-512",
    threads=1,
    measured=False,
    scan_row_ns=46,
    list_us={"Flat": 0.25, "SQfp16": 0.1, "SQ8": 0.1, "RaBitQ": 0.1, "PQ": 0.2},
    list_row_ns={"Flat": 60, "SQfp16": 30, "SQ8": 25, "RaBitQ": 14, "PQ": 1.3},
    centroid_ns=12,
    multiply_ps=20,
    compare_ns=60,
    insert_us=110,
    visit_us=1.7,
    random_read_us=150,
    read_bytes_per_s=5e8,
)

"""Results of sizing: the index for a number of vectors, before it is built."""

from pydantic import Field

from dml.reports.result import PartialResult, Result


class IndexOption(Result):
    """An index that was planned with, or why it was not chosen."""

    kind: str = Field(
        description="Flat, IVF-Flat, IVF-SQfp16, IVF-SQ8, IVF-RaBitQ, IVF-PQmx4fs, HNSW or CAGRA"
    )
    factory: str = Field(description="Faiss index_factory string of each shard")
    parameters: str = Field(description="of a search, as Faiss' ParameterSpace takes them; to begin with")
    machines: int = Field(description="a shard on each")
    memory_bytes: int = Field(description="of each machine: index and attributes")
    disk_bytes: int = Field(description="of all machines: index, vectors in full, items, attributes")
    latency_ms: float = Field(description="of one query on one thread of each machine")
    build_hours: float = Field(description="the shards are built at the same time")
    why: str = Field(description="it was chosen, or not")


class StageTime(Result):
    """A stage that comes before an index, for as many images as it has rows."""

    stage: str = Field(description="`ingest`, `embed` or `train`")
    hours: float
    images_per_s: float
    on: str = Field(description="what does it; twice as many need half of the hours")
    basis: str


class SizingReport(PartialResult):
    """The index for a number of vectors, before it is built."""

    rows: int
    dim: int
    recall: float = Field(
        description="recall@10 that is promised; where none was chosen, the best within the bounds"
    )
    feasible: bool = Field(
        description="false: no index is within the bounds, and `nearest` says which bounds are met"
    )
    chosen: IndexOption | None
    others: list[IndexOption]
    nearest: list[str] = Field(description="each alone makes it feasible, as an option of `dml plan`")
    stages: list[StageTime]
    times_of: str = Field(description="the machine whose rates the times are of")

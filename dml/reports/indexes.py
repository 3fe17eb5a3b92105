"""Results about indexes: versions, what was tried at build, exports, loads."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from dml.refs import IndexRef
from dml.reports.plans import IndexOption
from dml.reports.result import PartialResult, Result
from dml.reports.schedules import Refresh

ExportFormat = Literal["parquet", "npy", "faiss"]


class ExportReport(Result):
    """What an export wrote."""

    index: str = Field(description="NAME@VERSION")
    format: ExportFormat
    folder: str = Field(description="path of the new folder")
    files: list[str] = Field(description="names of the files in it")
    rows: int
    dim: int
    enrolled_since: int = Field(0, description="items enrolled or changed since, which are not in the files")


class LoadReport(Result):
    """What an engine holds of an index."""

    index: str = Field(description="NAME@VERSION")
    engine: str = Field(description="HOST:PORT of the Milvus server, and its database")
    collection: str = Field(description="name of the collection there")
    rows: int
    dim: int


class ListedIndex(IndexRef):
    """A version of an index in the store."""

    created: datetime = Field(description="when it was published, UTC")
    current: bool = Field(description="whether searches use it")
    newer: list[str] = Field(description="the dataset version and champion that are newer than it")
    fpir: float | None = Field(
        None, description="that its thresholds were calibrated for; null: it was not calibrated"
    )
    refresh: Refresh | None = Field(description="null: it is not refreshed by itself")


class IndexList(PartialResult):
    """The versions of the store's indexes, by name, the oldest first."""

    indexes: list[ListedIndex]
    damaged: dict[str, str] = Field(
        {}, description="scheduled index to why its `refresh.json` cannot be read"
    )


class OperatingPoint(Result):
    """What a search with some parameters finds, and what it costs."""

    parameters: str = Field(description="as Faiss' ParameterSpace takes them; empty: there are none")
    recall: float = Field(ge=0, le=1, description="recall@10 against exact search")
    mate_at_1: float | None = Field(description="queries whose first answer has their label; null: no labels")
    latency_ms: float = Field(ge=0, description="of one query on one thread, median")


class OperatingCurve(Result):
    """Search parameters of an index by recall, measured on held-out queries when it was built."""

    target: float = Field(description="recall@10 that was asked for")
    num_queries: int
    memory_bytes: int = Field(description="of `index.faiss`")
    exact_mate_at_1: float | None = Field(description="of exact search; null: no labels")
    least_similarity: float | None = Field(
        None,
        description="of a query to its nearest item; 1 of 200 of these queries is below it, and below it "
        "no recall is promised; null: fewer than 100 queries",
    )
    chosen: OperatingPoint
    points: tuple[OperatingPoint, ...] = Field(description="by recall, ascending")

    @property
    def k_factor(self) -> int:
        """Candidates per answer that are compared in full; 0: none are."""
        settings = dict(setting.split("=") for setting in self.chosen.parameters.split(",") if setting)
        return int(settings.get("k_factor_rf", 0))


class FirstStageTrial(Result):
    """What a first stage of a cascade finds and costs, with its candidates compared in full."""

    kind: str = Field(description="pca16, pca32, signs, rabitq, pq4 or pq8")
    bytes_per_vector: int
    shortlist: int = Field(description="candidates")
    recall: float = Field(ge=0, le=1, description="recall@10 against exact search")
    mate_at_1: float | None = Field(description="queries whose first answer has their label; null: no labels")
    scan_us: float = Field(
        ge=0, description="processor time to find them, of one query on one thread, median"
    )
    compare_us: float = Field(ge=0, description="and to compare them in full")


class FirstStageChoice(Result):
    """First stages that were tried when an index was built, and the one that was kept."""

    target: float = Field(description="recall@10 that was asked for")
    num_queries: int = Field(description="on which the chosen one was measured")
    sample_rows: int = Field(description="on which all were tried")
    chosen: FirstStageTrial | None = Field(description="on all rows; null: none reaches the target")
    refused: tuple[FirstStageTrial, ...] = Field(
        description="on all rows: reached the target on the sample only"
    )
    trials: tuple[FirstStageTrial, ...] = Field(description="on the sample")


class StageMates(Result):
    """How often a stage of a search hands on a mate: another item of the label of a labelled query."""

    stage: str
    num_queries: int = Field(description="labelled items that have a mate; each is no answer to itself")
    handed_on: int = Field(description="items that it hands on, for ten answers")
    mate_recall: float = Field(description="queries with a mate among what it hands on")
    mate_at_1: float | None = Field(description="queries whose first answer is a mate; null: it has no order")
    cpu_us: float = Field(description="processor time of one query on one thread, median")


class IndexExplanation(Result):
    """How an index version was built, and what its searches find and cost."""

    index: IndexRef
    planned: IndexOption | None = Field(None, description="why its factory; null: it was named, not planned")
    curve: OperatingCurve | None = Field(description="null: it has too few rows to measure")
    first_stage: FirstStageChoice | None = Field(None, description="null: it was built without")
    stages: tuple[StageMates, ...] = Field((), description="and the re-rankers; empty: no labels, or shards")
    picture: str | None = Field(None, description="path of the drawn curve; null: none")
    delta: int = Field(0, description="items that were enrolled or changed since it was built")
    tombstones: int = Field(0, description="items of it that were forgotten or changed since")

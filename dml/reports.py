"""Results for people: numbers, verdicts, lists and what was done, each printed as text or as JSON.

They hold refs, and are never handed on from stage to stage. A verb's `--json` prints one of them, or a ref.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dml.refs import (
    DatasetRef,
    EmbeddingsRef,
    IndexRef,
    ModelRef,
    Number,
    PackageRef,
    Ref,
    ReportRef,
    ThresholdsRef,
    TrainedRef,
)

RAW_PIXELS = "raw pixels"
"""The baseline of an evaluation that needs no model."""


class Result(BaseModel):
    """Base of all results."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PartialResult(Result):
    """A result that can be incomplete: the rest is there, and `error` says what is wrong."""

    error: str | None = Field(
        None,
        description="what is wrong; absent where nothing is. The exit status is then not 0",
        exclude_if=lambda error: error is None,
    )


class Comparison(Result):
    """One model against another on the same queries: its gain, and how sure that is."""

    metric: str
    gain: float = Field(description="mean over the queries")
    low: float = Field(description="of the gain's 95 % interval, classes resampled")
    high: float
    p_value: float = Field(description="how often chance alone exceeds the gate's min_gain by as much")
    num_queries: int
    num_classes: int


class WinLossTie(Result):
    """How many of something a model wins, loses and ties against another."""

    won: int
    lost: int
    tied: int


class PairedComparison(Result):
    """Two models by one metric of the same queries."""

    first: float = Field(description="mean over the queries")
    second: float = Field(description="the other's")
    tested: Comparison = Field(description="first against second")
    queries: WinLossTie = Field(description="of single queries, by their value")
    classes: WinLossTie = Field(description="of classes, by their mean")


class Measured(Result):
    """A number of an evaluation, and its interval where it has one."""

    value: Number
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]")


class Slice(Result):
    """The queries that have one value of an attribute."""

    attribute: str
    value: str | None = Field(description="None: those that have no value")
    num_queries: int = Field(description="with a positive in the gallery")
    metrics: dict[str, Measured]

    @property
    def title(self) -> str:
        return f"{self.attribute} {'missing' if self.value is None else self.value}"


class Evaluation(Result):
    """Every number of one embedding on one split."""

    metrics: dict[str, Measured]
    slices: list[Slice] = []

    @property
    def values(self) -> dict[str, float]:
        """Name to number, without intervals and slices."""
        return {name: measured.value for name, measured in self.metrics.items()}

    def row(self) -> dict[str, str | float]:
        """Name to number; intervals stand in brackets."""
        return _shown(self.metrics)

    def slice_rows(self) -> list[dict[str, str | float]]:
        """One row per slice of the queries."""
        return [
            {"slice": each.title, **_shown(each.metrics), "num_queries": each.num_queries}
            for each in self.slices
        ]


class EvaluationReport(Result):
    """How a package does on a dataset's test split, beside its baselines."""

    dataset: DatasetRef
    package: PackageRef
    trained: Evaluation
    baselines: dict[str, Evaluation] = {}

    @property
    def metrics(self) -> dict[str, float]:
        """Of the package: name to number, without intervals and slices."""
        return self.trained.values

    @property
    def baseline_metrics(self) -> dict[str, dict[str, float]]:
        """Of each baseline."""
        return {name: evaluation.values for name, evaluation in self.baselines.items()}

    def table(self) -> list[dict[str, str | float]]:
        """One row per baseline, the trained package last; intervals stand in brackets."""
        return [
            {"embedding": name, **_shown(evaluation.metrics)}
            for name, evaluation in self._by_embedding().items()
        ]

    def slices(self) -> list[dict[str, str | float]]:
        """One row per slice of the queries and embedding; empty where the configuration has no slices."""
        rows: dict[tuple[str, str | None], list[dict[str, str | float]]] = {}
        for name, evaluation in self._by_embedding().items():
            for each in evaluation.slices:
                row = {
                    "slice": each.title,
                    "embedding": name,
                    **_shown(each.metrics),
                    "num_queries": each.num_queries,
                }
                rows.setdefault((each.attribute, each.value), []).append(row)
        return [row for of_slice in rows.values() for row in of_slice]

    def verdict(self, metric: str = "recall_at_1") -> str:
        """One sentence that sets the package against the images' own pixels; empty without that baseline.

        Args:
            metric: to compare by, such as "recall_at_1"; larger is better.
        """
        return against_pixels(metric, self.metrics, self.baseline_metrics)

    def _by_embedding(self) -> dict[str, Evaluation]:
        return {**self.baselines, self.package.source or "trained": self.trained}


def against_pixels(
    metric: str,
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    *,
    only_worse: bool = False,
) -> str:
    """One sentence: what was measured against the images' own pixels; empty where one of the two is missing.

    Args:
        metric: larger is better.
        metrics: of the package.
        baselines: as `EvaluationReport.baseline_metrics`.
        only_worse: empty also where it is better.
    """
    value, pixels = metrics.get(metric), baselines.get(RAW_PIXELS, {}).get(metric)
    if value is None or pixels is None or (only_worse and value >= pixels):
        return ""
    how = "worse than" if value < pixels else "better than" if value > pixels else "as good as"
    return f"{how} comparing pixels: {metric} {value:.3f} against {pixels:.3f}"


def _shown(metrics: Mapping[str, Measured]) -> dict[str, str | float]:
    return {name: each.value if each.low is None else str(each) for name, each in metrics.items()}


class VectorsReport(Result):
    """How imported vectors do by their labels; there is no image to compare with."""

    embeddings: EmbeddingsRef
    evaluation: Evaluation


class Refusal(Result):
    """How many rows of a source were refused for one reason."""

    reason: str
    rows: int
    example: str = Field(description="where one of them is, and what is wrong with it")


IngestOutcome = Literal["made", "found", "repaired", "current"]
"""made: a new version; found: it was there, and is the current one now; repaired: it was there, damaged;
current: it was that before."""


class IngestReport(Result):
    """An ingest's result: the version, and what its reader must know of how it came about."""

    dataset: DatasetRef
    outcome: IngestOutcome
    refused: list[Refusal] = []
    quarantine: str = Field(description="path or URI of the table of what was refused, one row each")
    notes: list[str] = Field([], description="sentences on the split, merged labels, contradictory labels")


class ImportReport(Result):
    """An import's result: the vectors, and what its reader must know of how they came about."""

    embeddings: EmbeddingsRef
    outcome: Literal["made", "current"] = Field(description="current: the name stood for it before")
    normalized: int = Field(description="vectors that were not of unit length, and are now")
    refused: list[Refusal] = []
    quarantine: str = Field(description="path or URI of the table of what was refused, one row each")
    notes: list[str] = Field([], description="sentences on columns and rows that were left out")


class TrainingReport(Result):
    """A training flow's result: the version, how training went, and its evaluation."""

    model: ModelRef
    trained: TrainedRef
    evaluation: EvaluationReport
    gate_metric: str = Field(description="by which the gate compared it")
    reason: str | None = Field(None, description="why this experiment was chosen; None: it was named")


class ForgetReport(Result):
    """What forgetting items did."""

    items: int
    rebuilt: list[IndexRef] = Field(description="indexes, over what is left")
    removed: list[str] = Field(description="URIs of artefacts that held the items or were made of them")
    same_images: list[str] = Field(description="ids of other items with the same bytes, which stay")


class EndToEndReport(Result):
    """From images to an index: the results, and the seconds of each stage."""

    dataset: DatasetRef
    training: TrainingReport
    index: IndexRef
    gallery: str = Field(description="path or URI of the picture of queries and their answers")
    seconds: dict[str, float]


class CellReport(Result):
    """One cell of a bench: one run's numbers on a test split, or those of the images' own pixels."""

    fingerprint: str = Field(description="of all that decides the numbers")
    evaluation: Evaluation
    trained: TrainedRef | None = Field(None, description="None: nothing was trained")
    embeddings: EmbeddingsRef | None = Field(None, description="what was evaluated; None: raw pixels")
    seconds: float | None = Field(None, description="of training, evaluation apart; None: unknown")
    hardware: str = Field(description="what it ran on")

    @property
    def metrics(self) -> dict[str, float]:
        """Name to number, without intervals and slices."""
        return self.evaluation.values


class BenchReport(Ref):
    """A finished grid: its cells, and the tables that `table.md` and `table.csv` in its folder show."""

    cells: list[CellReport]
    tables: dict[str, list[dict[str, str]]] = Field(
        description="dataset version to its rows, percent and text"
    )
    notes: dict[str, list[str]] = Field(
        description="dataset version to published numbers that are not beside ours, and why"
    )
    comparisons: list[dict[str, str]] = Field([], description="paired tests of cells, one row each")


class ListedDataset(DatasetRef):
    """A version of a dataset in the store."""

    created: datetime = Field(description="when it was published, UTC")
    current: bool = Field(description="whether the name alone means this version")


class DatasetList(PartialResult):
    """The versions of the store's datasets, by name, the oldest first."""

    datasets: list[ListedDataset]


class ListedVectors(EmbeddingsRef):
    """A version of imported vectors in the store."""

    created: datetime = Field(description="when it was published, UTC")
    current: bool = Field(description="whether the name alone means this version")


class VectorsList(PartialResult):
    """The versions of the store's imported vectors, by name, the oldest first."""

    vectors: list[ListedVectors]


ExportFormat = Literal["parquet", "npy", "faiss"]


class ExportReport(Result):
    """What an export wrote."""

    index: str = Field(description="NAME@VERSION")
    format: ExportFormat
    folder: str = Field(description="path of the new folder")
    files: list[str] = Field(description="names of the files in it")
    rows: int
    dim: int


class LoadReport(Result):
    """What an engine holds of an index."""

    index: str = Field(description="NAME@VERSION")
    engine: str = Field(description="HOST:PORT of the Milvus server, and its database")
    collection: str = Field(description="name of the collection there")
    rows: int
    dim: int


class Refresh(Result):
    """When an index is refreshed by itself, and from what."""

    cron: str = Field(description="minute, hour, day of month, month, day of week")
    timezone: str = Field(description="that of `cron`, as Europe/Rome")
    model: str = Field(description="NAME (its champion at that time), NAME@ALIAS or NAME/VERSION")
    dataset: str = Field(description="NAME, whose source is read again first, or NAME@VERSION")


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


class ListedModel(ModelRef):
    """A version of a registered model."""

    current: bool = Field(description="whether it is its model's champion")


class ModelList(Result):
    """The versions of the registered models, the newest first within a name."""

    models: list[ListedModel]
    foreign: list[str] = Field(
        description="models of other tools, NAME, and their versions of models of dml, NAME/VERSION"
    )


class Preset(Result):
    """An experiment to start from."""

    name: str
    description: str


class PresetList(Result):
    """The experiments to start from."""

    presets: list[Preset]


class SearchHit(Result):
    """One item among the answers of a search."""

    id: str
    label: str | None = Field(description="null: the items have no labels")
    similarity: float = Field(description="cosine of query and item, [-1, 1]")
    attributes: dict[str, str | int | float | bool | None] = Field(description="null: it has no value")


class SearchRecall(Result):
    """Share of the k most similar matching items that are answered, and how that is known."""

    value: float
    basis: Literal["exact", "calibrated", "built"] = Field(
        description="exact; calibrated: on held-out queries under filters; built: at build, without a filter"
    )
    low: float | None = Field(description="of its 95 % interval; null: exact, or not measured")
    high: float | None
    num_queries: int | None = Field(description="held-out queries it was measured on")


class SearchStage(Result):
    """One stage of a search: what it looked at, and what that cost."""

    name: str
    budget: int = Field(description="rows that it was given to compare, at most")
    recall: float | None = Field(description="of what it hands on; null: not measured")
    cpu_us: float = Field(description="processor time of a query, mean of those searched together")


class SearchPlan(Result):
    """How a search was executed, why, and what it costs by the cost model that was fitted at build."""

    kind: Literal["nothing", "exact", "index_filtered", "index", "cascade"] = Field(
        description="nothing: no item matches; exact: compared with every match; index_filtered: the nearest "
        "lists, without what does not match; index: as built, without a filter; cascade: the candidates of "
        "small codes, compared in full"
    )
    factory: str = Field(description="the index's Faiss factory")
    count: int = Field(description="items that match the filter; all without one")
    rows: int = Field(description="items of the index")
    k: int = Field(description="answers wanted, at most the matches")
    filtered: bool
    probes: int | None = Field(description="lists that a query is expected to need; null: none")
    scan_us: float | None = Field(
        description="CPU microseconds of comparing with every match; null: not timed"
    )
    index_us: float | None = Field(
        description="of the index under this filter; null: not possible or not timed"
    )
    reason: str
    recall: SearchRecall
    timed_elsewhere: str | None = Field(
        description="the processor on which the costs were timed, where it is another than this one"
    )
    stages: list[SearchStage] = Field(description="of a cascade, in order, as it was executed")
    notes: list[str] = Field(description="what happened while it was executed")


class ImageHit(Result):
    """An image of an identity among the answers."""

    id: str
    similarity: float = Field(description="cosine of query and image, [-1, 1]")
    attributes: dict[str, str | int | float | bool | None] = Field(description="null: it has no value")


class IdentityHit(Result):
    """An identity among the answers of a search, which are grouped by it."""

    identity: str = Field(description="the label; of items without labels the id")
    similarity: float = Field(description="of its most similar image, or the mean over its images")
    images: list[ImageHit] = Field(description="the most similar image, or all its images")


class TriedScope(Result):
    """A part of the gallery that an identification looked into."""

    scope: str = Field(description="a filter; empty: the whole gallery")
    share: float | None = Field(description="of the FPIR; null: the threshold was given")
    threshold: float | None = Field(description="similarity; null: nobody is in the scope")
    candidates: int = Field(description="identities at or above it, whom the hint allows")


class Identification(Result):
    """Whose image a probe is, of those enrolled, or nobody's."""

    index: str = Field(description="NAME@VERSION")
    status: Literal["identified", "unknown", "needs_hint", "undecided"] = Field(
        description='"needs_hint": several could be, and `ask` tells them apart; "undecided": nothing does'
    )
    identity: str | None = Field(None, description="the label; of items without labels the id")
    similarity: float | None = Field(None, description="of its most similar image")
    id: str | None = Field(None, description="of that image")
    scope: str | None = Field(None, description="the filter of the scope that decided; null: none did")
    ask: str | None = Field(None, description="the attribute to ask for; never a value of it")
    tried: list[TriedScope] = Field(description="in order")


class Verification(Result):
    """Whether two images show the same identity, or an image an enrolled identity."""

    index: str = Field(description="NAME@VERSION")
    same: bool
    similarity: float = Field(description="cosine; of the most similar image of an identity")
    threshold: float
    fmr: float | None = Field(description="false-match rate of the threshold; null: it was given")
    identity: str | None = Field(description="null: the other is an image")
    images: int = Field(description="with which the image was compared")


class SearchReport(Result):
    """The answers to one query, and the query plan."""

    index: str = Field(description="NAME@VERSION")
    model: str = Field(description="the registered version NAME/VERSION that embedded it; empty: none")
    embedder: str = Field(description="version of what embedded items and query")
    plan: str = Field(description="how the query was executed, and why there are fewer than k answers")
    execution: SearchPlan | None = Field(
        description="the same in full: costs, reason, recall with its basis; null: another engine searched"
    )
    answers: list[SearchHit] = Field(description="the most similar first")
    identities: list[IdentityHit] | None = Field(
        None, description="the most similar first, instead of answers; null: they are not grouped"
    )
    picture: str | None = Field(None, description="path of the picture of query and answers; null: none")


class CheckedFpir(Result):
    """The false-positive identification rate of a threshold, on identities that did not set it."""

    fpir: float = Field(description="probes with a candidate, though none of them is enrolled")
    low: float = Field(description="of the 95 % interval, which counts identities and not images")
    high: float
    probes: int
    identities: int = Field(description="of the probes")
    enrolled: int = Field(description="identities that they were searched among, at most")

    def __str__(self) -> str:
        return f"{100 * self.fpir:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}] of {self.probes}"


class CalibratedScope(Result):
    """A scope's threshold, and how it did on identities that took no part in setting it."""

    scope: str = Field(description="a filter; empty: the whole gallery")
    identities: int = Field(description="enrolled in it")
    share: float = Field(description="its share of the false-positive identification rate")
    threshold: float | None = Field(None, description="similarity; null: none is promised")
    basis: Literal["scope", "pooled"] | None = Field(
        None, description="which impostors: those inside the scope, or those inside all scopes of its column"
    )
    beyond: int | None = Field(
        None, description="pairs of different identities at least so similar; at most 1,000 are counted"
    )
    checked: CheckedFpir | None = None
    refused: str = Field("", description="why nothing is promised; empty: something is")


class CalibrationReport(PartialResult):
    """The thresholds of an index version: the whole gallery first, then its scopes."""

    thresholds: ThresholdsRef
    scopes: list[CalibratedScope]

    @property
    def num_promised(self) -> int:
        """Scopes with a threshold."""
        return sum(not scope.refused for scope in self.scopes)

    def table(self) -> list[dict[str, str | int | float]]:
        """One row per scope."""
        return [
            {
                "scope": each.scope or "the whole gallery",
                "identities": each.identities,
                "threshold": "none" if each.refused or each.threshold is None else round(each.threshold, 4),
                "tail": each.basis or "",
                "pairs beyond": "" if each.beyond is None else each.beyond,
                "FPIR wanted": f"{100 * each.share:.3g} %",
                "checked": "" if each.checked is None else str(each.checked),
            }
            for each in self.scopes
        ]


class Neighbor(Result):
    """An image, and the image most similar to it."""

    id: str
    label: str | None
    nearest: str = Field(description="id of the other")
    nearest_label: str | None
    similarity: float = Field(description="cosine")


class ModelImportReport(Result):
    """What is known of a network from elsewhere, how it was tried, and the model it became."""

    source: str
    dim: int = Field(description="length of one embedding")
    license: str = Field(description="of its weights; empty: not said")
    notes: list[str] = Field(description="what was concluded of it, and what you must see to")
    preprocessing: dict[str, str | int | list[float] | None] = Field(
        description="what an image becomes before it"
    )
    picture: str | None = Field(None, description="path of an image as the network sees it; null: none")
    neighbors: list[Neighbor] = Field([], description="of ten images, in the first 200 of the dataset")
    model: ModelRef | None = Field(None, description="null: it was only tried")


class Schedule(Refresh):
    """A scheduled refresh."""

    index: str
    next: datetime = Field(description="when it is due next, in the time zone of the schedule")


class ScheduleList(PartialResult):
    """The scheduled indexes, and who follows their schedules."""

    schedules: list[Schedule]
    prefect: str | None = Field(description="address of the Prefect API that follows; null: none")
    damaged: dict[str, str] = Field(description="index to what is wrong with its schedule")


class RefreshReport(PartialResult):
    """What refreshing indexes did."""

    refreshed: list[IndexRef]
    failed: dict[str, str] = Field({}, description="index to why it was not refreshed")


class VerifiedArtifact(Result):
    """An artefact whose bytes were compared with its manifest."""

    kind: str = Field(description="as `dataset`, `index`, `package`, `checkpoint`")
    artifact: str = Field(description="NAME@VERSION, or the version alone")
    damaged: list[str] = Field(description="files")
    state: str = Field(description='"ok", "made again", or what begins with "damaged" or "removed"')
    uri: str


class VerifyReport(PartialResult):
    """Every artefact that was compared with what was published."""

    artifacts: list[VerifiedArtifact]

    @property
    def damaged(self) -> list[VerifiedArtifact]:
        """What is damaged still."""
        return [each for each in self.artifacts if each.state.startswith("damaged")]


class UnneededArtifact(Result):
    """Something in the store that nothing needs."""

    uri: str
    kind: str
    why: str
    size_bytes: int


class CleanupReport(Result):
    """What `dml gc` removed."""

    removed: list[UnneededArtifact]
    size_bytes: int = Field(description="of them all")
    dry_run: bool = Field(description="whether they were only listed")


class RemovalReport(Result):
    """What `dml rm` removed."""

    kind: str = Field(description="`dataset`, `index`, `model` or `run`")
    removed: list[str] = Field(description="versions, as they are typed")


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


class IndexExplanation(Result):
    """How an index version was built, and what its searches find and cost."""

    index: IndexRef
    curve: OperatingCurve | None = Field(description="null: it has too few rows to measure")
    first_stage: FirstStageChoice | None = Field(None, description="null: it was built without")
    picture: str | None = Field(None, description="path of the drawn curve; null: none")


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


class RollbackReport(Result):
    """What `dml rollback` made current again."""

    kind: str = Field(description="`index`, `vectors` or `model`")
    current: str = Field(description="NAME@VERSION, or NAME/VERSION of a model")


class StackAddresses(Result):
    """Where the stack of `dml up` is reached: environment variables, and its logs."""

    PREFECT_API_URL: str
    MLFLOW_TRACKING_URI: str
    DML_STORE: str = Field(description="the store's URI")
    logs: str = Field(description="folder of the logs")

    @property
    def variables(self) -> dict[str, str]:
        """What another terminal must know, by name."""
        return self.model_dump(exclude={"logs"})


class ClassSize(Result):
    """How many images a class has."""

    label: str
    split: str
    images: int


class ClassBalance(Result):
    """How the images of a split spread over its classes."""

    split: str
    images: int
    classes: int
    fewest: int = Field(description="images of the smallest class")
    median: float
    most: int = Field(description="images of the largest class")
    single: int = Field(description="classes with one image: it has no positive, and cannot be evaluated")


class Extent(Result):
    """The smallest, the median and the largest of a number."""

    low: float
    median: float
    high: float


class ImageSummary(Result):
    """What kind of files a dataset's images are."""

    width: Extent = Field(description="pixels, as the file stores them upright")
    height: Extent
    formats: dict[str, int] = Field(description="format and colour mode, as `JPEG RGB`, to images")
    grey: int = Field(description="images whose channels are alike, however they are stored")
    size_bytes: int = Field(description="of all files together")


class AttributeSummary(Result):
    """What an attribute's values are."""

    name: str
    type: str
    missing: int = Field(description="images without a value")
    distinct: int = Field(description="different values, the missing one apart")
    low: str | None = Field(description="the smallest value; None: all are missing")
    high: str | None
    most_frequent: str | None
    most_frequent_images: int


class NearDuplicatePair(Result):
    """Two images that are nearly the same."""

    first: str = Field(description="id")
    first_label: str
    second: str = Field(description="id of the first's nearest")
    second_label: str
    distance: int = Field(description="of 64 bits of the perceptual hashes, those that differ")
    similarity: float = Field(description="of the thumbnails' structure, at most 1")


Between = Literal["test and train", "train", "test"]


class NearDuplicateSummary(Result):
    """The near-duplicates within a split, or those that test images have in train."""

    between: Between
    images: int = Field(
        description="of the split that have a near-duplicate there; of test where between both"
    )
    other_label: int = Field(description="of these, images whose nearest near-duplicate has another label")
    pairs: int = Field(description="of near-duplicates; at least so many where `truncated`")
    truncated: int = Field(description="images with more candidates than were compared")
    examples: list[NearDuplicatePair] = Field(
        description="the most alike; near_duplicates.csv has all images"
    )


class SuspectedLabel(Result):
    """An image whose nearest neighbours agree on a label that is not its own."""

    id: str
    label: str
    split: str
    agreed: str = Field(description="the neighbours' label")
    neighbors: int = Field(description="that agree")
    similarity: float = Field(description="mean cosine similarity to them")


class DatasetFindings(Result):
    """What a look at a dataset finds, before any training; lists are cut, counts are of all."""

    splits: list[ClassBalance]
    largest: list[ClassSize] = Field(description="classes of each split; classes.csv has all")
    smallest: list[ClassSize]
    images: ImageSummary
    attributes: list[AttributeSummary]
    quarantine: list[Refusal]
    near_duplicates: list[NearDuplicateSummary]
    embedder: str | None = Field(
        None, description="what embedded the images; None: no embedding was looked at"
    )
    num_suspected: int | None = Field(None, description="suspected labels; None: no embedding was looked at")
    suspected: list[SuspectedLabel] = Field([], description="the first of them; suspects.csv has all")
    warnings: list[str] = Field([], description="what to look at first, in sentences")


class DatasetReport(Result):
    """The report of a dataset alone: its page, and what is on it."""

    dataset: DatasetRef
    report: ReportRef
    findings: DatasetFindings

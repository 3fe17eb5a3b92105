"""Configuration of evaluation, reports, the gate, and index building and refreshing."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dml.config.part import Part

Rank = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class FewShotConfig(Part):
    """N-way K-shot episodes: accuracy by nearest class mean and example, with 95 % intervals over classes."""

    ways: int = Field(20, ge=2, description="classes per episode")
    shots: tuple[Rank, ...] = Field((1, 5), min_length=1, description="examples per class")
    queries_per_class: int = Field(5, ge=1)
    episodes: int = Field(1000, ge=2)
    within: str | None = Field(
        None,
        description="all classes of an episode share a value of this attribute, such as Omniglot's alphabet",
    )

    @property
    def metrics(self) -> list[str]:
        return [f"{self.ways}_way_{k}_shot_{by}" for k in self.shots for by in ("class_mean", "nearest")]


class BootstrapConfig(Part):
    """Bootstrap intervals of every retrieval metric, as NAME.low and NAME.high."""

    resamples: int = Field(1000, ge=1)
    by: Literal["class", "query"] = Field(
        "class", description="resampling unit; errors within a class are correlated, so `query` is too narrow"
    )
    confidence: Rate = 0.95


class EvaluationConfig(Part):
    """Metrics, queries and gallery of an evaluation; by default every row is a query among all others."""

    recall_at: tuple[Rank, ...] = Field((1, 2, 4, 8), min_length=1)
    precision_at: tuple[Rank, ...] = ()
    map_at: tuple[Rank, ...] = Field((), description="K of MAP@K, once per denominator")
    map_denominators: tuple[Literal["relevant", "attainable", "retrieved"], ...] = ("relevant", "attainable")
    full_map: bool = Field(False, description="average precision over the whole ranking; slower")
    macro: bool = Field(False, description="also averages over classes of the class averages, as NAME_macro")
    slices: tuple[str, ...] = Field(
        (), description="attributes; metrics are also computed for the queries of each value"
    )
    role_attribute: str | None = Field(
        None, description="attribute with the values `query` and `gallery`; None: every row is both"
    )
    same_camera_attribute: str | None = Field(
        None,
        description="gallery rows with the query's class and its value of this attribute are ignored "
        "(Market-1501)",
    )
    bootstrap: BootstrapConfig | None = None
    false_accept_rates: tuple[Rate, ...] = Field(
        (),
        description="verification on all pairs: EER, and TAR at these rates, with intervals; EER has an "
        "interval if it is at most the largest rate",
    )
    few_shot: FewShotConfig | None = None
    nmi: bool = Field(True, description="k-means is the slow part of an evaluation")
    nmi_average: Literal["arithmetic", "geometric"] = "arithmetic"
    ami: bool = Field(False, description="with nmi: also adjusted mutual information")
    kmeans_seeds: int | None = Field(
        None,
        ge=1,
        description="runs of k-means, averaged; None: 20 up to 2,000 rows, 5 up to 20,000, else 1",
    )
    baselines: bool = Field(True, description="also evaluate raw pixels and the encoder before training")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ami and not self.nmi:
            raise ValueError("ami uses the clusters of nmi, so nmi must be on; got ami without nmi.")
        return self

    @property
    def query_metrics(self) -> list[str]:
        """The names of the metrics that every single query has."""
        maps = [f"map_at_{k}_by_{by}" for k in self.map_at for by in self.map_denominators]
        return [
            *(f"recall_at_{k}" for k in self.recall_at),
            *(f"precision_at_{k}" for k in self.precision_at),
            *("r_precision", "map_at_r"),
            *maps,
            *(["map"] if self.full_map else []),
        ]

    @property
    def metrics(self) -> list[str]:
        """The names of an evaluation's metrics, without those of slices and intervals."""
        rates = [f"tar_at_far_{rate:g}" for rate in self.false_accept_rates]
        clustering = ["nmi", "pairwise_f1", *(["ami"] if self.ami else [])] if self.nmi else []
        return [
            *self.query_metrics,
            *(f"{name}_macro" for name in (self.query_metrics if self.macro else [])),
            *(["eer", *rates] if rates else []),
            *(self.few_shot.metrics if self.few_shot else []),
            *clustering,
        ]


class ReportConfig(Part):
    """Content and size of a report."""

    split: Literal["train", "test"] = Field("test", description="train: to find wrong labels there")
    queries: int = Field(8, ge=0, description="queries shown with their answers, evenly over the split")
    answers: int = Field(8, ge=1, description="answers shown per query")
    failures: int = Field(
        12,
        ge=0,
        description="shown of each: worst queries, confident mistakes, queries only one model gets right",
    )
    suspects: int = Field(24, ge=0, description="suspected labels shown; suspects.csv lists all")
    agreeing: int = Field(5, ge=2, description="nearest neighbours that must agree on another label")
    false_accept_rates: tuple[Rate, ...] = Field((0.001, 0.01, 0.1), description="thresholds to draw")
    map_points: int = Field(1000, ge=10, description="items on the map of the embedding; t-SNE is slow")
    map_classes: int = Field(16, ge=1, le=24, description="classes on the map with their own color")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="queries, gallery and metrics")


class DatasetReportConfig(Part):
    """What the report of a dataset alone shows, and when two images are near-duplicates."""

    classes: int = Field(16, ge=0, description="of which pictures are shown, spread evenly over all")
    images_per_class: int = Field(6, ge=1)
    pairs: int = Field(12, ge=0, description="near-duplicates shown, across splits and within each")
    max_distance: int = Field(
        6, ge=0, le=64, description="bits of 64 in which near-duplicates' perceptual hashes may differ"
    )
    min_similarity: float = Field(
        0.97,
        ge=-1,
        le=1,
        description="of near-duplicates' thumbnails; 0.95 finds more photos, and more errors",
    )
    suspects: int = Field(24, ge=0, description="suspected labels shown; suspects.csv lists all")
    agreeing: int = Field(5, ge=2, description="nearest neighbours that must agree on another label")
    map_points: int = Field(1000, ge=10, description="items on the map of the embedding; t-SNE is slow")
    map_classes: int = Field(16, ge=1, le=24, description="classes with a colour of their own on it")


class GateConfig(Part):
    """Conditions for a new version to become the champion."""

    metric: str = "recall_at_1"
    at_least: Share | Literal["raw_pixels", "before_training"] | None = Field(
        None,
        description="minimum of the metric, also without a champion: a number, or the value of a baseline; "
        "None: a version worse than raw pixels is noted, not refused",
    )
    min_gain: float = Field(
        0.0, gt=-1, lt=1, description="the gain over the champion must be greater than this"
    )
    confidence: Rate | None = Field(
        None,
        description="confidence of a paired test over classes that the gain is not noise; None: no test",
    )


class IndexConfig(Part):
    """Construction of a Faiss index, and measurement of its recall."""

    factory: str = Field("auto", description="auto: as `dml plan` has it for these rows; or a Faiss string")
    recall: float = Field(0.95, ge=0.5, le=1, description="recall@10 that the search parameters are tuned to")
    latency_ms: float = Field(5.0, gt=0, description="auto: of one query on one thread, at most")
    memory_gb: float | None = Field(None, gt=0, description="auto: for the index; None: this machine's")
    vectors: Literal["float32", "float16"] = Field(
        "float32", description="flat vectors beside the index, for exact comparison; float16: half the size"
    )
    num_probes: int | None = Field(None, gt=0, description="IVF lists searched; None: chosen by recall")
    recall_queries: int = Field(2000, gt=0, description="queries of the recall measurement")
    order_by: str | None = Field(
        None,
        description="the column that filters name most: rows are stored by its values, then by IVF list, so "
        "that matches are together; None: in the order of the items",
    )
    first_stage: Literal["auto", "pca16", "pca32", "signs", "rabitq", "pq4", "pq8"] | None = Field(
        None,
        description="small codes that find the candidates of a search without a filter; auto: the cheapest "
        "that reaches the recall, if one does",
    )
    shards: int = Field(
        1, gt=0, description="bundles that the rows are cut into, at the parts of the embeddings table"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        bounds = {"latency_ms": self.latency_ms, "memory_gb": self.memory_gb}
        ignored = [name for name, value in bounds.items() if value != type(self).model_fields[name].default]
        if ignored and self.factory != "auto":
            raise ValueError(
                f"{' and '.join(ignored)} must be left out beside a factory, since only auto chooses by "
                f"that; got factory {self.factory!r}."
            )
        return self


class RefreshConfig(Part):
    """Scheduled refresh of an index: when, and from which model and dataset."""

    cron: str = Field(description="five fields: minute, hour, day of month, month, day of week")
    timezone: str = Field("UTC", description="IANA name of the time zone that `cron` is in")
    model: str = Field(
        description="NAME (the champion at the time of the refresh), NAME@ALIAS or NAME/VERSION; empty for "
        "imported vectors"
    )
    dataset: str = Field(
        description="NAME (its source is ingested again first), NAME@VERSION, or the name of imported vectors"
    )

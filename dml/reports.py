"""What the stages tell people: numbers, verdicts and what was done, each printed as text or as JSON.

They hold refs, and are never handed on from stage to stage.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dml.refs import DatasetRef, EmbeddingsRef, IndexRef, ModelRef, PackageRef, Ref, TrainedRef

RAW_PIXELS = "raw pixels"
"""The baseline of an evaluation that needs no model."""


class Comparison(BaseModel):
    """One model against another on the same queries: its gain, and how sure that is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    gain: float = Field(description="mean over the queries")
    low: float = Field(description="of the gain's 95 % interval, classes resampled")
    high: float
    p_value: float = Field(description="how often chance alone exceeds the gate's min_gain by as much")
    num_queries: int
    num_classes: int


class WinLossTie(BaseModel):
    """How many of something a model wins, loses and ties against another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    won: int
    lost: int
    tied: int


class PairedComparison(BaseModel):
    """Two models by one metric of the same queries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: float = Field(description="mean over the queries")
    second: float = Field(description="the other's")
    tested: Comparison = Field(description="first against second")
    queries: WinLossTie = Field(description="of single queries, by their value")
    classes: WinLossTie = Field(description="of classes, by their mean")


class Measured(BaseModel):
    """A number of an evaluation, and its interval where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]")


class Slice(BaseModel):
    """The queries that have one value of an attribute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attribute: str
    value: str | None = Field(description="None: those that have no value")
    num_queries: int = Field(description="with a positive in the gallery")
    metrics: dict[str, Measured]


class Evaluation(BaseModel):
    """Every number of one embedding on one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: dict[str, Measured]
    slices: list[Slice] = []

    @property
    def values(self) -> dict[str, float]:
        """Name to number, without intervals and slices."""
        return {name: measured.value for name, measured in self.metrics.items()}


class EvaluationReport(BaseModel):
    """How a package does on a dataset's test split, beside its baselines."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
                title = f"{each.attribute} {'missing' if each.value is None else each.value}"
                row = {
                    "slice": title,
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
        return {**self.baselines, "trained": self.trained}


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


class Refusal(BaseModel):
    """How many rows of a source were refused for one reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    rows: int
    example: str = Field(description="where one of them is, and what is wrong with it")


IngestOutcome = Literal["made", "found", "repaired", "current"]
"""made: a new version; found: it was there, and is the current one now; repaired: it was there, damaged;
current: it was that before."""


class IngestReport(BaseModel):
    """An ingest's result: the version, and what its reader must know of how it came about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: DatasetRef
    outcome: IngestOutcome
    refused: list[Refusal] = []
    quarantine: str = Field(description="path or URI of the table of what was refused, one row each")
    notes: list[str] = Field([], description="sentences on the split, merged labels, contradictory labels")


class TrainingReport(BaseModel):
    """A training flow's result: the version, how training went, and its evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelRef
    trained: TrainedRef
    evaluation: EvaluationReport
    gate_metric: str = Field(description="by which the gate compared it")
    reason: str | None = Field(None, description="why this experiment was chosen; None: it was named")


class ForgetReport(BaseModel):
    """What forgetting items did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int
    rebuilt: list[IndexRef] = Field(description="indexes, over what is left")
    removed: list[str] = Field(description="URIs of artefacts that held the items or were made of them")
    same_images: list[str] = Field(description="ids of other items with the same bytes, which stay")


class EndToEndReport(BaseModel):
    """From images to an index: the results, and the seconds of each stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: DatasetRef
    training: TrainingReport
    index: IndexRef
    gallery: str = Field(description="path or URI of the picture of queries and their answers")
    seconds: dict[str, float]


class CellReport(BaseModel):
    """One cell of a bench: one run's numbers on a test split, or those of the images' own pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

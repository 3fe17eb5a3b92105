"""Results of evaluations: numbers, slices, comparisons."""

from collections.abc import Mapping

from pydantic import Field

from dml.refs import DatasetRef, Number, PackageRef
from dml.reports.result import Result

RAW_PIXELS = "raw pixels"
"""The baseline of an evaluation that needs no model."""


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
    slices: list[Slice] = Field([])
    num_queries: int = Field(0, description="that retrieval metrics are means over: those with a positive")
    num_without_positives: int = Field(
        0, description="queries without a positive in the gallery, which no mean is over"
    )

    @property
    def left_out(self) -> str:
        """One sentence on the queries that no mean is over; empty where there are none."""
        if not self.num_without_positives:
            return ""
        return (
            f"means over {self.num_queries} queries; {self.num_without_positives} more have no positive in "
            "the gallery and are left out"
        )

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
            {"slice": slice_.title, **_shown(slice_.metrics), "num_queries": slice_.num_queries}
            for slice_ in self.slices
        ]


class EvaluationReport(Result):
    """How a package does on a dataset's test split, beside its baselines."""

    dataset: DatasetRef
    package: PackageRef
    trained: Evaluation
    baselines: dict[str, Evaluation] = Field({})

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
            for slice_ in evaluation.slices:
                row = {
                    "slice": slice_.title,
                    "embedding": name,
                    **_shown(slice_.metrics),
                    "num_queries": slice_.num_queries,
                }
                rows.setdefault((slice_.attribute, slice_.value), []).append(row)
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
    return {name: metric.value if metric.low is None else str(metric) for name, metric in metrics.items()}

"""Results of benches: cells and tables."""

from pydantic import Field

from dml.refs import EmbeddingsRef, Ref, TrainedRef
from dml.reports.evaluation import Evaluation
from dml.reports.result import Result


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

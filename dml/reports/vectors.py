"""Results about imported vectors: imports, versions, evaluations."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from dml.refs import EmbeddingsRef
from dml.reports.datasets import Refusal
from dml.reports.evaluation import Evaluation
from dml.reports.result import PartialResult, Result


class VectorsReport(Result):
    """How imported vectors do by their labels; there is no image to compare with."""

    embeddings: EmbeddingsRef
    evaluation: Evaluation


class ImportReport(Result):
    """An import's result: the vectors, and what its reader must know of how they came about."""

    embeddings: EmbeddingsRef
    outcome: Literal["made", "current"] = Field(description="current: the name stood for it before")
    normalized: int = Field(description="vectors that were not of unit length, and are now")
    refused: list[Refusal] = Field([])
    quarantine: str = Field(description="path or URI of the table of what was refused, one row each")
    notes: list[str] = Field([], description="sentences on columns and rows that were left out")


class ListedVectors(EmbeddingsRef):
    """A version of imported vectors in the store."""

    created: datetime = Field(description="when it was published, UTC")
    current: bool = Field(description="whether the name alone means this version")


class VectorsList(PartialResult):
    """The versions of the store's imported vectors, by name, the oldest first."""

    vectors: list[ListedVectors]

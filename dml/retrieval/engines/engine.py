"""What an engine does: hold an embeddings table's vectors and items, and find the most similar that match."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.refs import EmbeddingsRef
from dml.retrieval.answer import Answer
from dml.retrieval.filters.where import Where


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do, and what it refuses."""

    name: str
    """As its messages call it."""
    upsert: bool
    delete: bool
    refused_filters: dict[str, str]
    """A kind of filter that it cannot follow exactly, and so refuses, to why."""
    knows_values: bool
    """Whether `=` with a value that no item has is refused; else it finds nothing."""
    max_k: int | None = None
    """The most answers to a query; None: all."""


@dataclass(frozen=True)
class EngineResult:
    """The answers of each query by descending similarity, and how they were found."""

    answers: list[list[Answer]]
    """Q lists of k, or of fewer where fewer items match."""
    plan: str


class Engine(Protocol):
    """Items with their vectors, somewhere; `capabilities` says what it can do with them.

    A filter means the same in every engine: truth has two values, a comparison with a missing value is false,
    and `not` inverts. What an engine cannot follow exactly it refuses.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def create(self, embeddings: EmbeddingsRef) -> None:
        """Make room for the items of a table, and hold none.

        Raises:
            InvalidSetting: there is something in its place.
        """

    def load(self, embeddings: EmbeddingsRef) -> int:
        """Hold a whole table; nothing of it is found before all of it is there. Returns the number of rows.

        Loading the same table again does nothing.

        Raises:
            InvalidSetting: other items are there.
            InvalidData: an item that the engine cannot hold.
        """

    def search(self, vectors: NDArray[np.float32], k: int, where: Where = None) -> EngineResult:
        """The k most similar items that match of each query, (Q, D) float32 of unit length.

        Raises:
            InvalidFilter, InvalidSetting: a filter that it refuses, or a k.
            InvalidData: queries of another dimension or not of unit length.
            MissingArtifact: nothing was created or loaded.
        """

    def count(self, where: Where = None) -> int:
        """How many items match."""

    def upsert(self, items: pa.Table, vectors: NDArray[np.float32]) -> None:
        """Add items, or replace those of the same ids: (N,) rows and (N, D) float32 of unit length.

        Raises:
            InvalidSetting: it cannot.
        """

    def delete(self, ids: Sequence[str]) -> None:
        """Remove the items of these ids; an id that none has is no error.

        Raises:
            InvalidSetting: it cannot.
        """

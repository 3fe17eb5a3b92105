"""What an opened index does, whatever it is made of: search, optionally with filters, and count.

A query has exactly k answers unless fewer items match. `BundleIndex` is an index of one bundle,
`ShardedIndex` one in shards, `LiveIndex` either of them with what was enrolled and forgotten since.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.errors import IncompatibleArtifact
from dml.refs import IndexRef
from dml.retrieval.answer import NO_MORE, Answer, SearchResult
from dml.retrieval.arguments import check_vectors, checked_k
from dml.retrieval.filters import Filter, Where, check
from dml.retrieval.filters.columns import Columns
from dml.retrieval.numbered_identities import NumberedIdentities
from dml.retrieval.plan import Plan
from dml.retrieval.tombstones import Tombstones


class Index(ABC):
    """Items with their vectors, to search in; can be shared between threads."""

    ref: IndexRef
    """The version."""

    @property
    @abstractmethod
    def base(self) -> "BuiltIndex":
        """The index as it was built, without what was enrolled and forgotten since."""

    @property
    @abstractmethod
    def items(self) -> pa.Table:
        """A row for each item that can be found.

        Raises:
            InvalidSetting: they are not in this process, but in a cluster.
        """

    @property
    @abstractmethod
    def columns(self) -> Columns:
        """What filters are checked against."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """How many items can be found."""

    @property
    def num_enrolled(self) -> int:
        """Items since the index was built, changed ones among them."""
        return 0

    @property
    def num_deleted(self) -> int:
        """Items of the index that were forgotten or changed since it was built."""
        return 0

    @abstractmethod
    def check(self) -> None:
        """Search for a few items of the index.

        Raises:
            CorruptArtifact: it cannot be searched.
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Free what it holds outside this process; it cannot be searched any more."""

    @abstractmethod
    def vectors_of(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of some of the index's items, (N, D), as it stores them, of unit length.

        Raises:
            MissingArtifact: an id that none of its items has.
        """

    @abstractmethod
    def rows_of(self, filter: Filter) -> NDArray[np.int64]:
        """(n,) the rows of `items` that satisfy a checked filter, ascending."""

    @abstractmethod
    def num_identities(self, filter: Filter | None) -> int:
        """How many identities have an item that satisfies a checked filter; None: in all."""

    def mate_recall(self, stage: str) -> float | None:
        """Labelled queries with a mate among what a stage hands on, measured at build; None: not measured."""
        return None

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int,
        *,
        embedder: str,
        where: Where = None,
        exclude_ids: Sequence[str] | None = None,
        refuse_absent: bool = True,
        tombstones: Tombstones | None = None,
    ) -> SearchResult:
        """Find the k most similar items for each query; equal similarities rank by position.

        Args:
            vectors: (Q, D) float32, unit length.
            k: answers wanted.
            embedder: fingerprint of what embedded the queries.
            where: the filter that an answer must satisfy, as text, a filter, JSON, or several; see `filters`.
            exclude_ids: (Q,) for each query an item that is not an answer, such as the query itself.
            refuse_absent: refuse a value that no item has; False where items elsewhere may have it.
            tombstones: rows that are no answers, since they are deleted; None: there are none.

        Returns:
            Exactly k answers per query unless fewer items match, and then the plan says so.

        Raises:
            IncompatibleArtifact: the queries were embedded by another embedder than the items.
            InvalidData: queries of another dimension or not of unit length.
            InvalidSetting: a condition that cannot be followed, or k below 1.
            CorruptArtifact: the index answers with what cannot be.
            ValueError: not one excluded id per query.
        """
        k = self._checked_queries(vectors, k, embedder)
        if exclude_ids is not None and len(exclude_ids) != len(vectors):
            raise ValueError(f"exclude_ids must name one item per query; got {len(exclude_ids)}.")
        more = int(exclude_ids is not None)
        filter = self._filter(where, refuse_absent)
        answers, plan = self._nearest(vectors, k, filter, tombstones, more=more)
        if exclude_ids is not None:
            answers = [
                [answer for answer in of_query if answer.id != excluded][:k]
                for of_query, excluded in zip(answers, exclude_ids, strict=True)
            ]
        fewest = min(map(len, answers), default=k)
        if fewest < k:
            plan = plan.noting(f"{fewest} of {k} answers: {NO_MORE}")
        return SearchResult(answers, plan)

    def count(self, where: Where, *, refuse_absent: bool = True, tombstones: Tombstones | None = None) -> int:
        """How many items satisfy a filter; without one, all. Arguments as of `search`."""
        return self._count(self._filter(where, refuse_absent), tombstones)

    def exact_similarities(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        where: Where = None,
        refuse_absent: bool = False,
        tombstones: Tombstones | None = None,
    ) -> NDArray[np.float32]:
        """The similarities of the k most similar items, by comparing with all that match; to measure recall.

        Args:
            query: (D,) float32, unit length.
            k: how many.
            where: as of `search`.
            refuse_absent: as of `search`.
            tombstones: as of `search`.

        Returns:
            (min(k, matches),) descending.
        """
        return self._exact_similarities(query, k, self._filter(where, refuse_absent), tombstones)

    @abstractmethod
    def _nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        filter: Filter | None,
        tombstones: Tombstones | None,
        *,
        more: int,
    ) -> tuple[list[list[Answer]], Plan]:
        """The answers of each query, up to `k + more`, and the plan."""

    @abstractmethod
    def _count(self, filter: Filter | None, tombstones: Tombstones | None) -> int:
        """As `count`, of a checked filter."""

    @abstractmethod
    def _exact_similarities(
        self, query: NDArray[np.float32], k: int, filter: Filter | None, tombstones: Tombstones | None
    ) -> NDArray[np.float32]:
        """As `exact_similarities`, of a checked filter."""

    def _filter(self, where: Where, refuse_absent: bool) -> Filter | None:
        return check(where, self.columns, refuse_absent=refuse_absent)

    def _checked_queries(self, vectors: NDArray[np.float32], k: object, embedder: str) -> int:
        """Refuse what cannot be searched for; the k to search with, since Faiss takes none of NumPy's."""
        index_embedder = self.ref.embeddings.embedder
        if embedder != index_embedder.fingerprint:
            raise IncompatibleArtifact(
                f"index {self.ref.uri} holds vectors of {index_embedder}; this query was embedded by "
                f"{embedder[:12]}. Embed it with {index_embedder}, or build an index for {embedder[:12]}."
            )
        number = checked_k(k)
        check_vectors("Queries", vectors, self.ref.embeddings.dim, do=self._remedy)
        return number

    @cached_property
    def _remedy(self) -> str:
        return f"Embed them with {self.ref.embeddings.embedder}."


class BuiltIndex(Index):
    """An index version as it was built: its rows have numbers, which never change."""

    @property
    def base(self) -> "BuiltIndex":
        return self

    @property
    def num_rows(self) -> int:
        return self.ref.rows

    @abstractmethod
    def find_rows(self, ids: Sequence[str]) -> list[int | None]:
        """The row of each of these items; None: it is not here."""

    @abstractmethod
    def items_at(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The columns of these rows (n,)."""

    def num_identities(self, filter: Filter | None) -> int:
        rows = slice(None) if filter is None else self.rows_of(filter)
        return len(np.unique(self.identities.of_rows[rows]))

    @cached_property
    def identities(self) -> NumberedIdentities:
        """The identity of each item."""
        return NumberedIdentities(self.items)

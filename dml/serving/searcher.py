"""A searcher that keeps an index and its model open: image files in, most similar items out.

Opening costs seconds (libraries, the package's weights, the index); a query in an open searcher milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dml.errors import MissingArtifact
from dml.models.package import Package, load_package
from dml.refs import IndexRef, PackageRef, require_package
from dml.reports import SearchHit, SearchPlan, SearchReport
from dml.retrieval.filters import Where
from dml.retrieval.index import find_index, published_names
from dml.retrieval.plan import Plan
from dml.retrieval.search import Answer, Index, open_index


@dataclass(frozen=True)
class QueryResult:
    """The search result of one query: answers and plan."""

    index: IndexRef
    answers: Sequence[Answer]
    plan: Plan | str
    """Text: another engine searched."""

    def report(self, *, picture: str | None = None) -> SearchReport:
        """The result as a report for users.

        Args:
            picture: path of the picture of query and answers; None: no picture was drawn.
        """
        return SearchReport(
            index=str(self.index),
            model=self.index.model,
            embedder=self.index.embeddings.embedder.version,
            plan=str(self.plan),
            execution=(
                SearchPlan.model_validate(self.plan.model_dump()) if isinstance(self.plan, Plan) else None
            ),
            answers=[
                SearchHit(
                    id=answer.id,
                    label=answer.label,
                    similarity=round(answer.similarity, 6),
                    attributes=answer.attributes,
                )
                for answer in self.answers
            ],
            picture=picture,
        )


@dataclass(frozen=True)
class _Opened:
    index: Index
    package: Package | None
    """None: the model that embedded the items is not in the store."""


class Searcher:
    """An open index with the model package that embedded its items; can be shared between threads.

    Example:
        searcher = Searcher.open("dml-store", "shop")
        for result in searcher.search([image], k=3, where="script = 'Greek'"):
            print(result.answers[0].label, result.answers[0].similarity)
    """

    def __init__(self, store: str, name: str, opened: _Opened) -> None:
        self._store, self._name, self._opened = store, name, opened

    @classmethod
    def open(cls, store: str | PathLike[str], index: str | None = None) -> Self:
        """Open an index of a store.

        Args:
            store: the store's folder or s3:// URI.
            index: NAME (the version in use) or NAME@VERSION; None: the store's only index.

        Raises:
            MissingArtifact: no such index, or several and none was named.
            CorruptArtifact: the package's files are not those that were published.
        """
        store = fspath(store)
        ref = find_index(store, only_index(store) if index is None else index)
        package = _package_of(ref)
        return cls(store, index or ref.name, _Opened(open_index(ref), package))

    @property
    def index(self) -> IndexRef:
        """The current version."""
        return self._opened.index.ref

    @property
    def package(self) -> Package:
        """The package that embeds the queries, which is the package that embedded the items.

        Raises:
            IncompatibleArtifact: the items were embedded by a model that is not in the store.
        """
        return _require(self._opened)

    def search(self, images: Sequence[bytes], *, k: int = 10, where: Where = None) -> list[QueryResult]:
        """Embed images and find the most similar items of each.

        Args:
            images: Q files' bytes, in any format Pillow reads.
            k: number of answers per query.
            where: a filter of items by their attributes, as text, a filter, JSON, or several of these, which
                must all hold; see `dml.retrieval.filters`.

        Returns:
            Q results in the order of the images, all of the same index version.

        Raises:
            IncompatibleArtifact: a model that is not in the store embedded the items.
            InvalidData: a file that is not an image.
            InvalidSetting: k below 1, or a filter (InvalidFilter) that cannot be read or does not fit.
        """
        opened = self._opened  # `refresh` can replace it during the search
        vectors = _require(opened).embed(images)
        return self._answers(opened.index, vectors, k, where)

    def search_vectors(
        self, vectors: NDArray[np.float32], *, k: int = 10, where: Where = None
    ) -> list[QueryResult]:
        """Find the items most similar to vectors that the items' embedder computed outside this process.

        Args:
            vectors: (Q, D) float32 of unit length.
            k: number of answers per query.
            where: as of `search`.

        Raises:
            InvalidData: vectors of another dimension or not of unit length.
            InvalidSetting: k below 1, or a filter (InvalidFilter) that cannot be read or does not fit.
        """
        return self._answers(self._opened.index, vectors, k, where)

    def search_ids(self, ids: Sequence[str], *, k: int = 10, where: Where = None) -> list[QueryResult]:
        """Find the items most similar to items of the index; an item is never its own answer.

        Args:
            ids: Q ids of items.
            k: number of answers per query.
            where: as of `search`; the items of `ids` need not satisfy it.

        Raises:
            MissingArtifact: an id that is not in the index.
            InvalidSetting: k below 1, or a filter (InvalidFilter) that cannot be read or does not fit.
        """
        index = self._opened.index
        return self._answers(index, index.vectors_of(ids), k, where, exclude_ids=ids)

    def _answers(
        self,
        index: Index,
        vectors: NDArray[np.float32],
        k: int,
        where: Where,
        *,
        exclude_ids: Sequence[str] | None = None,
    ) -> list[QueryResult]:
        embedder = index.ref.embeddings.embedder.fingerprint
        result = index.search(vectors, k, where=where, embedder=embedder, exclude_ids=exclude_ids)
        return [QueryResult(index.ref, answers, result.plan) for answers in result.answers]

    def refresh(self) -> bool:
        """Switch to the current version of the index; returns whether it changed.

        Running searches finish on the version they started with. A searcher of NAME@VERSION does not change.
        """
        former = self._opened
        ref = find_index(self._store, self._name)
        if ref.fingerprint == former.index.ref.fingerprint:
            return False
        same = ref.embeddings.embedder.fingerprint == former.index.ref.embeddings.embedder.fingerprint
        package = former.package if same else _package_of(ref)
        self._opened = _Opened(open_index(ref), package)
        return True


def _package_of(ref: IndexRef) -> Package | None:
    embedder = ref.embeddings.embedder
    return load_package(embedder.uri) if isinstance(embedder, PackageRef) else None


def _require(opened: _Opened) -> Package:
    if opened.package is None:
        require_package(opened.index.ref.embeddings.embedder, "A search by image")
    assert opened.package is not None
    return opened.package


def only_index(store: str) -> str:
    """The name of a store's only index; raises MissingArtifact where it has none or several."""
    names = published_names(store)
    if not names:
        raise MissingArtifact(
            f"A search needs an index; the store {store} has none. Make one: "
            "dml index NAME --model MODEL --dataset DATASET."
        )
    if len(names) > 1:
        raise MissingArtifact(f"--index must name one of the store's indexes {names}; none was given.")
    return names[0]

"""Our own index as an engine: an index of a store, built from a table and published whole."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.config import IndexConfig
from dml.errors import InvalidSetting, MissingArtifact
from dml.refs import EmbeddingsRef
from dml.retrieval.arguments import checked_k
from dml.retrieval.build import build_index
from dml.retrieval.engines.engine import Capabilities, EngineResult
from dml.retrieval.filters import Where
from dml.retrieval.index import publish_index, published_index
from dml.retrieval.shards import open_index


class BundleEngine:
    """An index of a store, in this process.

    Args:
        store: the store's URI.
        name: the index's name; it need not be there yet.
        config: how to build it.

    Raises:
        CorruptArtifact: its files are not those that were published.

    Example:
        engine = BundleEngine("dml-store", "shop")
        engine.load(embeddings)
        found = engine.search(vectors, 10, parse("region = 'east'"))
    """

    capabilities = Capabilities(
        "an index of our own", upsert=False, delete=False, refused_filters={}, knows_values=True
    )

    def __init__(self, store: str, name: str, config: IndexConfig | None = None) -> None:
        self._store, self._name, self._config = store, name, config or IndexConfig()
        ref = published_index(store, name)
        self._index = None if ref is None else open_index(ref)
        self._is_created = False

    def create(self, embeddings: EmbeddingsRef) -> None:
        if self._index is not None:
            raise InvalidSetting(
                f"An index must be new to be created; {self._index.ref} is there. Name another."
            )
        self._is_created = True

    def load(self, embeddings: EmbeddingsRef) -> int:
        if self._index is not None:
            held = self._index.ref.embeddings
            if held.fingerprint != embeddings.fingerprint:
                raise InvalidSetting(
                    f"An index must hold the table already, or be new, to be loaded; {self._index.ref} "
                    f"holds {held.source}. "
                    "Name another, or build a new version: dml index."
                )
            return held.rows
        ref = build_index(self._store, self._name, embeddings, self._config)
        publish_index(self._store, ref)
        self._index = open_index(ref)
        return ref.rows

    def search(self, vectors: NDArray[np.float32], k: int, where: Where = None) -> EngineResult:
        k = checked_k(k)
        if self._index is None:
            self._require_created()
            return EngineResult([[] for _ in vectors], f"0 of {k} answers: no items")
        embedder = self._index.ref.embeddings.embedder.fingerprint
        result = self._index.search(vectors, k, where=where, embedder=embedder)
        return EngineResult(result.answers, str(result.plan))

    def count(self, where: Where = None) -> int:
        if self._index is None:
            self._require_created()
            return 0
        return self._index.count(where)

    def upsert(self, items: pa.Table, vectors: NDArray[np.float32]) -> None:
        raise self._refusal("change an item")

    def delete(self, ids: Sequence[str]) -> None:
        raise self._refusal("remove an item")

    def _require_created(self) -> None:
        if not self._is_created:
            raise MissingArtifact(
                f"Index {self._name} must be loaded to be searched; there is none. Do: dml index."
            )

    def _refusal(self, what: str) -> InvalidSetting:
        return InvalidSetting(
            f"An engine must be able to {what}; an index's versions never change. Build a new one: dml index."
        )

"""Search an index's items where another engine holds them: images, items or vectors in, answers out."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dml.models.package import load_package
from dml.refs import IndexRef, require_package
from dml.retrieval.changes import require_unchanged
from dml.retrieval.engines.milvus import MilvusEngine
from dml.retrieval.engines.milvus_address import MilvusAddress, collection_name
from dml.retrieval.filters.where import Where
from dml.retrieval.index import find_index
from dml.retrieval.shards import open_index
from dml.serving.query_result import QueryResult
from dml.serving.searcher import only_index


class EngineSearcher:
    """An index's items in a Milvus collection that `dml load` filled, with the model that embedded them.

    Example:
        searcher = EngineSearcher.open("dml-store", "shop", "milvus://localhost:19530")
        for result in searcher.search([image], k=3, where="script = 'Greek'"):
            print(result.answers[0].label, result.answers[0].similarity)
    """

    def __init__(self, index: IndexRef, engine: MilvusEngine) -> None:
        self.index, self._engine = index, engine

    @classmethod
    def open(
        cls,
        store: str | PathLike[str],
        index: str | None,
        engine: str,
        *,
        collection: str | None = None,
        token: str = "",
    ) -> Self:
        """Open an index's collection.

        Args:
            store: the store's folder or s3:// URI.
            index: NAME (the version in use) or NAME@VERSION; None: the store's only index.
            engine: milvus://HOST:PORT.
            collection: None: that of the index version.
            token: USER:PASSWORD or an API key; "": the server asks for none.

        Raises:
            MissingArtifact: no such index, or it was not loaded there.
            IncompatibleArtifact: the collection holds other items.
            Unreachable: no Milvus answers there.
        """
        address, root = MilvusAddress.parse(engine), fspath(store)
        ref = find_index(root, only_index(root) if index is None else index)
        require_unchanged(ref, "Another engine")
        opened = MilvusEngine(address, collection or collection_name(str(ref)), token=token)
        opened.require_table(ref.embeddings)
        return cls(ref, opened)

    def search(self, images: Sequence[bytes], *, k: int = 10, where: Where = None) -> list[QueryResult]:
        """Embed images and find the most similar items of each; as `Searcher.search`."""
        package = load_package(require_package(self.index.embeddings.embedder, "A search by image").uri)
        return self.search_vectors(package.embed(images), k=k, where=where)

    def search_vectors(
        self, vectors: NDArray[np.float32], *, k: int = 10, where: Where = None
    ) -> list[QueryResult]:
        """Find the items most similar to vectors, (Q, D) float32 of unit length."""
        result = self._engine.search(vectors, k, where)
        return [QueryResult(self.index, answers, result.plan) for answers in result.answers]

    def search_ids(self, ids: Sequence[str], *, k: int = 10, where: Where = None) -> list[QueryResult]:
        """Find the items most similar to items of the index; an item is never its own answer."""
        vectors = open_index(self.index).vectors_of(ids)
        results = self.search_vectors(vectors, k=k + 1, where=where)
        return [
            replace(result, answers=[answer for answer in result.answers if answer.id != id_][:k])
            for id_, result in zip(ids, results, strict=True)
        ]

    def close(self) -> None:
        """End the connection."""
        self._engine.close()

"""Search an index, narrowed by what is known beforehand, exactly k answers unless fewer match."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml import storage
from dml.data.schema import BASE_COLUMNS
from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting
from dml.refs import IndexRef
from dml.retrieval.filters import matching_rows
from dml.retrieval.index import INDEX_FILE, ITEMS_FILE

_SCAN_ROWS, _SCAN_SHARE = 10_000, 0.05
_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Answer:
    """One item found."""

    id: str
    similarity: float
    """Cosine of query and item, [-1, 1]."""
    label: str
    split: str
    attributes: dict[str, Any]
    position: int
    """Of the item's row in the indexed dataset."""


@dataclass(frozen=True)
class SearchResult:
    """Each query's answers, the most similar first, and what was done to find them."""

    answers: list[list[Answer]]
    plan: str


class Index:
    """An opened index version: vectors and items, memory-mapped where Faiss can."""

    def __init__(self, ref: IndexRef) -> None:
        self.ref = ref
        folder = storage.fetch(ref.uri, ref.fingerprint)
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        self._index = faiss.read_index(str(folder / INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)
        with pa.memory_map(str(folder / ITEMS_FILE)) as source:
            self.items = pa.ipc.open_file(source).read_all()

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int,
        *,
        package: str,
        where: Sequence[str] = (),
        exclude_ids: Sequence[str] | None = None,
    ) -> SearchResult:
        """Find the k most similar items for each query; equal similarities rank by position.

        Args:
            vectors: (Q, D) float32, unit length.
            k: answers wanted.
            package: fingerprint of the package that embedded the queries.
            where: conditions all of which an answer must satisfy; see `filters`.
            exclude_ids: (Q,) for each query an item that is not an answer, such as the query itself.

        Raises:
            IncompatibleArtifact: the queries were embedded by another package than the items.
            InvalidData: queries of another dimension or not of unit length.
            InvalidSetting: a condition that cannot be followed, or k below 1.
        """
        self._refuse(vectors, k, package)
        wanted = min(k + (exclude_ids is not None), len(self.items))
        mask = matching_rows(self.items, where) if where else None
        similarities, rows, plan = self._find(vectors, wanted, mask)
        answers = []
        for i in range(len(vectors)):
            found = [(s, r) for s, r in zip(similarities[i], rows[i], strict=True) if r >= 0]
            found.sort(key=lambda pair: (-pair[0], pair[1]))
            excluded = exclude_ids[i] if exclude_ids is not None else None
            mine = [self._answer(float(s), int(r)) for s, r in found]
            answers.append([answer for answer in mine if answer.id != excluded][:k])
        fewest = min((len(found) for found in answers), default=k)
        if fewest < k:
            plan += f"; {fewest} answers, since no more match"
        return SearchResult(answers, plan)

    def _refuse(self, vectors: NDArray[np.float32], k: int, package: str) -> None:
        held = self.ref.embeddings.package.fingerprint
        if package != held:
            raise IncompatibleArtifact(
                f"index {self.ref.uri} holds vectors of package {held[:12]}; this query was embedded by "
                f"{package[:12]}. Embed it with {held[:12]}, or build an index for {package[:12]}."
            )
        if k < 1:
            raise InvalidSetting(f"k must be 1 or more; got {k}.")
        if vectors.ndim != 2 or vectors.shape[1] != self.ref.embeddings.dim:
            raise InvalidData(f"Queries must be (Q, {self.ref.embeddings.dim}); got {vectors.shape}.")
        lengths = np.linalg.norm(vectors, axis=1)
        if not (np.abs(lengths - 1) <= _LENGTH_TOLERANCE).all():
            raise InvalidData(f"Queries must have length 1; got lengths {lengths.min()} to {lengths.max()}.")

    def _find(
        self, vectors: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
        """(Q, k) similarities and rows, -1 where there is none, and what was done."""
        if mask is None:
            similarities, rows = self._index.search(vectors, k)
            return similarities, rows, f"{self.ref.factory} over {self.ref.rows} items"
        matching = np.flatnonzero(mask)
        total = f"{len(matching)} of {self.ref.rows} items match"
        if len(matching) <= max(_SCAN_ROWS, _SCAN_SHARE * self.ref.rows):
            return *self._scan(vectors, k, matching), f"{total}, compared with all of them"
        similarities, rows = self._index.search(vectors, k, params=self._parameters(matching))
        if (rows < 0).any():
            # The lists that were probed held fewer than k matches: nothing but all of them is sure.
            return *self._scan(vectors, k, matching), f"{total}, too few probed, compared with all of them"
        return similarities, rows, f"{total}, {self.ref.factory} among them"

    def _parameters(self, matching: NDArray[np.int64]) -> faiss.SearchParameters:
        selector = faiss.IDSelectorBatch(matching)
        lists = faiss.try_extract_index_ivf(self._index)
        if lists is None:
            return faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        # As many more lists as the filter leaves fewer items in each.
        probes = min(lists.nlist, int(lists.nprobe * self.ref.rows / len(matching)) + 1)
        return faiss.SearchParametersIVF(sel=selector, nprobe=probes)  # type: ignore[call-arg]

    def _scan(
        self, vectors: NDArray[np.float32], k: int, matching: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Exact search among few items."""
        if not len(matching):
            return np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
        similarities = vectors @ self._vectors(matching).T
        k = min(k, len(matching))
        best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(similarities, best, axis=1), matching[best]

    def _vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        lists = faiss.try_extract_index_ivf(self._index)
        if lists is not None and lists.direct_map.no():
            lists.make_direct_map()
        vectors: NDArray[np.float32] = self._index.reconstruct_batch(rows)
        return vectors

    def _answer(self, similarity: float, row: int) -> Answer:
        item = {name: self.items[name][row].as_py() for name in self.items.column_names}
        attributes = {k: v for k, v in item.items() if k not in BASE_COLUMNS and k != "position"}
        return Answer(item["id"], similarity, item["label"], item["split"], attributes, item["position"])


def open_index(ref: IndexRef) -> Index:
    """Open an index version; fetched once per machine where the store is remote."""
    return Index(ref)

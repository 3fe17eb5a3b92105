"""Search an index, narrowed by what is known beforehand, exactly k answers unless fewer match."""

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

_SCAN_ROWS, _SCAN_SHARE = 10_000, 0.05  # up to the larger of both, comparing with all matches is fastest
_SCAN_BLOCK_ROWS = 1 << 16
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

        Returns:
            Exactly k answers per query unless fewer items match, and then the plan says so.

        Raises:
            IncompatibleArtifact: the queries were embedded by another package than the items.
            InvalidData: queries of another dimension or not of unit length.
            InvalidSetting: a condition that cannot be followed, or k below 1.
            ValueError: not one excluded id per query.
        """
        self._refuse(vectors, k, package)
        if exclude_ids is not None and len(exclude_ids) != len(vectors):
            raise ValueError(f"exclude_ids must name one item per query; got {len(exclude_ids)}.")
        matching = np.flatnonzero(matching_rows(self.items, where)) if where else None
        num_matching = self.ref.rows if matching is None else len(matching)
        wanted = min(k + (exclude_ids is not None), num_matching)
        similarities, rows, plan = self._find(np.ascontiguousarray(vectors), wanted, matching)
        answers = self._answers(similarities, rows)
        if exclude_ids is not None:
            answers = [
                [answer for answer in found if answer.id != excluded][:k]
                for found, excluded in zip(answers, exclude_ids, strict=True)
            ]
        fewest = min((len(found) for found in answers), default=k)
        return SearchResult(
            answers, plan if fewest == k else f"{plan}; {fewest} of {k} answers: no more match"
        )

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
            raise InvalidData(
                f"Queries must be (Q, {self.ref.embeddings.dim}); got {vectors.shape}. "
                f"Embed them with package {held[:12]}."
            )
        lengths = np.linalg.norm(vectors, axis=1)
        if not (np.abs(lengths - 1) <= _LENGTH_TOLERANCE).all():
            raise InvalidData(
                f"Queries must have length 1; got lengths {lengths.min()} to {lengths.max()}. "
                "Divide each by its length."
            )

    def _find(
        self, vectors: NDArray[np.float32], k: int, matching: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
        """(Q, k) similarities and rows, k being at most the number of matches; and what was done."""
        if matching is None:
            similarities, rows = self._index.search(vectors, k)
            plan = f"{self.ref.factory} over {self.ref.rows} items"
        else:
            plan = f"{len(matching)} of {self.ref.rows} items match"
            parameters = self._parameters(matching)
            if parameters is None:
                return *self._scan(vectors, k, matching), f"{plan}, compared with all of them"
            similarities, rows = self._index.search(vectors, k, params=parameters)
            plan += f", {self.ref.factory} among them"
        if (rows < 0).any():
            # The lists that were probed held fewer than k: nothing but all of them is sure.
            everything = np.arange(self.ref.rows) if matching is None else matching
            return *self._scan(vectors, k, everything), f"{plan}, too few there, compared with all of them"
        return similarities, rows, plan

    def _parameters(self, matching: NDArray[np.int64]) -> faiss.SearchParameters | None:
        """How the index itself can search among many matches; None where comparing with each is better.

        Graphs lose recall under a filter (HNSW32, 1 % matching: 0.23), and refined indexes take none.
        """
        if len(matching) <= max(_SCAN_ROWS, _SCAN_SHARE * self.ref.rows):
            return None
        bits = np.zeros(self.ref.rows, dtype=np.bool_)
        bits[matching] = True
        selector = faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))  # type: ignore[call-arg, arg-type]
        if isinstance(self._index, faiss.IndexFlat):
            return faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        if isinstance(self._index, faiss.IndexIVF):
            # As many more lists as the filter leaves fewer items in each.
            probes = min(self._index.nlist, int(self._index.nprobe * self.ref.rows / len(matching)) + 1)
            return faiss.SearchParametersIVF(sel=selector, nprobe=probes)  # type: ignore[call-arg]
        return None

    def _scan(
        self, vectors: NDArray[np.float32], k: int, matching: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Compare with each matching item, as the index stores it; in blocks."""
        similarities = np.empty((len(vectors), 0), dtype=np.float32)
        rows = np.empty((len(vectors), 0), dtype=np.int64)
        for start in range(0, len(matching), _SCAN_BLOCK_ROWS):
            block = matching[start : start + _SCAN_BLOCK_ROWS]
            similarities = np.hstack([similarities, vectors @ self._index.reconstruct_batch(block).T])
            rows = np.hstack([rows, np.broadcast_to(block, (len(vectors), len(block)))])
            best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
            similarities = np.take_along_axis(similarities, best, axis=1)
            rows = np.take_along_axis(rows, best, axis=1)
        return similarities, rows

    def _answers(self, similarities: NDArray[np.float32], rows: NDArray[np.int64]) -> list[list[Answer]]:
        """Each query's items, the most similar first, equal ones by position."""
        order = np.lexsort((rows, -similarities), axis=1)
        similarities = np.take_along_axis(similarities, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
        items = iter(self.items.take(_row_numbers(rows)).to_pylist())
        return [[_answer(float(value), next(items)) for value in values] for values in similarities]


def _row_numbers(rows: NDArray[np.int64]) -> pa.Array:
    """As Arrow, by hand: `pa.array` imports pandas, a third of a second that one search would wait for."""
    return pa.Array.from_buffers(pa.int64(), rows.size, [None, pa.py_buffer(np.ascontiguousarray(rows))])


def _answer(similarity: float, item: dict[str, Any]) -> Answer:
    attributes = {k: v for k, v in item.items() if k not in BASE_COLUMNS and k != "position"}
    return Answer(item["id"], similarity, item["label"], item["split"], attributes, item["position"])


def open_index(ref: IndexRef) -> Index:
    """Open an index version; fetched once per machine where the store is remote."""
    return Index(ref)

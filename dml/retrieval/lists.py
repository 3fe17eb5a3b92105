"""The inverted lists of a Faiss index, scanned under a bitmap of rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

# With many lists a matrix product and a partition: of 4,096 centroids of 128 dimensions the 256 nearest take
# Faiss' heaps 400 us, so 160.
_SIMILARITIES_AT_ONCE = 1 << 24

Selector = Callable[[NDArray[np.uint8]], faiss.IDSelector]


@dataclass(frozen=True)
class NearLists:
    """The lists nearest to each query, the nearest first."""

    queries: NDArray[np.float32]
    """(Q, d) as the lists compare them."""
    numbers: NDArray[np.int64]
    """(Q, P); -1: there is no more."""
    similarities: NDArray[np.float32]
    """(Q, P) of query and centroid."""


class InvertedLists:
    """The IVF part of an index, also below a transform or a refinement.

    Args:
        ivf: the IVF index.
        transforms: what a query passes before it.
        selector: makes Faiss' selector of a bitmap.
    """

    def __init__(
        self, ivf: faiss.IndexIVF, transforms: list[faiss.VectorTransform], selector: Selector
    ) -> None:
        self._ivf, self._transforms, self._selector = ivf, transforms, selector
        self.num_lists = int(ivf.nlist)
        quantizer = faiss.downcast_index(ivf.quantizer)
        self._centroids: NDArray[np.float32] | None = None
        if isinstance(quantizer, faiss.IndexFlat) and quantizer.metric_type == faiss.METRIC_INNER_PRODUCT:
            # A copy: in a mapped file they may begin between two words, and each product would copy them.
            self._centroids = quantizer.reconstruct_n(0, self.num_lists)
        self._contents: faiss.InvertedLists = ivf.invlists  # type: ignore[assignment]
        sizes = [self._contents.list_size(n) for n in range(self.num_lists)]
        self.sizes: NDArray[np.int64] = np.array([*sizes, 0], dtype=np.int64)
        """(num_lists + 1,) items of each list; the last for list -1."""

    @classmethod
    def of(
        cls,
        index: faiss.Index,
        *,
        selector: Selector = faiss.IDSelectorBitmap,  # type: ignore[assignment]
    ) -> Self | None:
        """The inverted lists of an index; None: it has none."""
        if isinstance(index, faiss.IndexRefine):
            index = faiss.downcast_index(index.base_index)
        transforms = []
        if isinstance(index, faiss.IndexPreTransform):
            transforms = [
                faiss.downcast_VectorTransform(index.chain.at(n))  # type: ignore[attr-defined]
                for n in range(index.chain.size())  # type: ignore[attr-defined]
            ]
            index = faiss.downcast_index(index.index)
        return cls(index, transforms, selector) if isinstance(index, faiss.IndexIVF) else None

    @property
    def keeps_vectors(self) -> bool:
        """Whether similarities are those of the vectors themselves: no codes, no transform."""
        return (
            isinstance(self._ivf, faiss.IndexIVFFlat)
            and not self._transforms
            and self._ivf.metric_type == faiss.METRIC_INNER_PRODUCT
        )

    def list_of_rows(self, num_rows: int) -> NDArray[np.int32]:
        """(N,) the list of each row."""
        lists = np.full(num_rows, -1, dtype=np.int32)
        for number in np.flatnonzero(self.sizes[:-1]):
            ids = faiss.rev_swig_ptr(self._contents.get_ids(int(number)), int(self.sizes[number]))
            lists[ids] = number
        return lists

    def near(self, queries: NDArray[np.float32], probes: int) -> NearLists:
        """The lists nearest to each of (Q, D) queries."""
        for transform in self._transforms:
            queries = transform.apply(queries)
        queries = np.ascontiguousarray(queries)
        if self._centroids is None:
            similarities, numbers = self._ivf.quantizer.search(queries, probes)
            return NearLists(queries, numbers, similarities)
        block = max(_SIMILARITIES_AT_ONCE // self.num_lists, 1)
        parts = [
            _most_similar(queries[start : start + block] @ self._centroids.T, probes)
            for start in range(0, max(len(queries), 1), block)
        ]
        similarities, numbers = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return NearLists(queries, numbers, similarities)

    def parameters(self, bitmap: NDArray[np.uint8], probes: int) -> faiss.SearchParametersIVF:
        """What `scan` of so many lists a query takes; can be used again, and shared between threads.

        Args:
            bitmap: (ceil(N / 8),) of the rows that may be found, one bit a row, the lowest bit first.
            probes: P of the lists that are passed.
        """
        return faiss.SearchParametersIVF(sel=self._selector(bitmap), nprobe=probes)  # type: ignore[call-arg]

    def scan(
        self, near: NearLists, taken: NDArray[np.bool_], k: int, parameters: faiss.SearchParametersIVF
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k most similar rows of a bitmap among those of some lists.

        Args:
            near: each query's nearest lists.
            taken: (Q, P) which of them are scanned.
            k: rows wanted.
            parameters: of the bitmap and P.

        Returns:
            (Q, k) similarities as the index computes them, and rows; -1: there is no more.
        """
        numbers = np.where(taken, near.numbers, -1)
        shape = (len(numbers), k)
        similarities, rows = np.empty(shape, np.float32), np.empty(shape, np.int64)
        pointer = faiss.swig_ptr
        # Faiss' own wrapper of this call takes no parameters, so no selector.
        self._ivf.search_preassigned_c(  # type: ignore[attr-defined]
            len(numbers),
            pointer(near.queries),
            k,
            pointer(numbers),
            pointer(near.similarities),
            pointer(similarities),
            pointer(rows),
            False,
            parameters,
        )
        return similarities, rows


def _most_similar(
    similarities: NDArray[np.float32], number: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of (Q, N) the largest of each row, descending, and their columns."""
    queries, negative = np.arange(len(similarities))[:, None], -similarities
    if number < similarities.shape[1]:
        columns = negative.argpartition(number - 1, axis=1)[:, :number]
        columns = columns[queries, negative[queries, columns].argsort(axis=1)]
    else:
        columns = negative.argsort(axis=1)
    return similarities[queries, columns], columns

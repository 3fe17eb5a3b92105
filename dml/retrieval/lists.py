"""The inverted lists of a Faiss index, scanned under a bitmap of rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

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
        similarities, numbers = self._ivf.quantizer.search(queries, probes)
        return NearLists(queries, numbers, similarities)

    def scan(
        self, near: NearLists, taken: NDArray[np.bool_], k: int, bitmap: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k most similar rows of the bitmap among those of some lists.

        Args:
            near: each query's nearest lists.
            taken: (Q, P) which of them are scanned.
            k: rows wanted.
            bitmap: (ceil(N / 8),) one bit a row, the lowest bit first.

        Returns:
            (Q, k) similarities as the index computes them, and rows; -1: there is no more.
        """
        numbers = np.where(taken, near.numbers, -1)
        shape = (len(numbers), k)
        similarities, rows = np.empty(shape, np.float32), np.empty(shape, np.int64)
        parameters = faiss.SearchParametersIVF(  # type: ignore[call-arg]
            sel=self._selector(bitmap), nprobe=numbers.shape[1]
        )
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

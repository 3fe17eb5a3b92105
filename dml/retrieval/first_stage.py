"""The first stage of a cascade: small codes of an index's vectors, which find candidates to compare in full.

    pca16, pca32   the first principal components, in half precision
    signs          one bit a dimension: above its median or not. The nearest by Hamming distance are compared
                   with the query in full: the sum of its deviations, each with the bit's sign
    rabitq         one bit a dimension after centring, and two factors (Gao and Long 2024, arXiv:2405.12497)
    pq4, pq8       product quantization, 4 bits for 4 or 8 dimensions, scanned by registers

All are ordinary Faiss indexes, and all but the signs compare by L2. On vectors of unit length the nearest by
L2 are the most similar, and centring, which RaBitQ and principal components need, changes no distance.
"""

from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.retrieval.vectors import Vectors

KINDS = ("pca16", "pca32", "signs", "rabitq", "pq4", "pq8")
_HAMMING_FACTOR = 4
"""Candidates by Hamming distance / candidates by the query in full."""


def factory_of(kind: str, dim: int) -> str | None:
    """The Faiss index_factory string of a kind of first stage; None: it does not suit this dimension."""
    if kind == "signs":
        return "LSHt"
    if kind == "rabitq":
        return "RaBitQ"
    number = int(kind.lstrip("pcaq"))
    if kind.startswith("pca"):
        return f"PCA{number},SQfp16" if number < dim else None
    return f"PQ{dim // number}x4fs" if dim % number == 0 and dim > number else None


class FirstStage:
    """An index of small codes that finds candidates; can be shared between threads.

    Args:
        index: filled, of one of the kinds.
    """

    def __init__(self, index: faiss.Index) -> None:
        self.index = index
        self._signs = None
        if isinstance(index, faiss.IndexLSH):
            self._medians = faiss.vector_to_array(index.thresholds)  # type: ignore[attr-defined]
            shape = index.ntotal, index.code_size
            self._signs = faiss.rev_swig_ptr(index.codes.data(), shape[0] * shape[1]).reshape(shape)

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of one vector's code."""
        return int(self.index.sa_code_size())

    def candidates(self, queries: NDArray[np.float32], number: int) -> list[NDArray[np.int64]]:
        """For each query the rows that are probably most similar, ascending.

        Args:
            queries: (Q, D) float32, unit length.
            number: how many rows; all, if there are fewer.
        """
        number = min(number, int(self.index.ntotal))
        if self._signs is None:
            found = self.index.search(queries, number)[1]
        else:
            found = self._by_signs(queries, number)
        return [np.sort(rows[rows >= 0]) for rows in found]

    def _by_signs(self, queries: NDArray[np.float32], number: int) -> NDArray[np.int64]:
        """(Q, number) rows: the nearest by Hamming distance, and of these by the query in full."""
        assert self._signs is not None
        by_hamming = self.index.search(queries, min(_HAMMING_FACTOR * number, int(self.index.ntotal)))[1]
        if by_hamming.shape[1] == number:
            return by_hamming
        dim = queries.shape[1]
        chosen = np.empty((len(queries), number), dtype=np.int64)
        for query_number, (query, rows) in enumerate(zip(queries - self._medians, by_hamming, strict=True)):
            bits = np.unpackbits(self._signs[rows], axis=1, count=dim, bitorder="little")
            # Twice the sum over the set bits, less the sum of all, is the sum with the bits' signs.
            sums = bits.astype(np.float32) @ query
            chosen[query_number] = rows[np.argpartition(-sums, number - 1)[:number]]
        return chosen


def compared_in_full(
    vectors: Vectors, queries: NDArray[np.float32], k: int, candidates: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k most similar of each query's candidates.

    Args:
        vectors: of the rows, in full.
        queries: (Q, D) float32, unit length.
        k: answers.
        candidates: rows for each query, ascending.

    Returns:
        (Q, k) similarities, descending, and rows; -infinity and -1 where there are fewer candidates.
    """
    similarities = np.full((len(queries), k), -np.inf, dtype=np.float32)
    nearest = np.full((len(queries), k), -1, dtype=np.int64)
    for query_number, rows in enumerate(candidates):
        values, found = vectors.search_among(queries[query_number : query_number + 1], k, rows)
        similarities[query_number, : values.shape[1]] = values[0]
        nearest[query_number, : found.shape[1]] = found[0]
    return similarities, nearest

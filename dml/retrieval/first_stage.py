"""The first stage of a cascade: small codes of an index's vectors, which find candidates to compare in full.

Which codes are best depends on the embedding: where a few directions have most of the variance, principal
components find nearly all neighbours and signs few; where all directions have the same, it is the other way
round. So each kind is tried on a sample of the index's own vectors when it is built, and the cheapest that
reaches the recall target is kept.

    pca16, pca32   the first principal components, in half precision
    signs          one bit a dimension: above its median or not. The nearest by Hamming distance are compared
                   with the query in full: the sum of its deviations, each with the bit's sign
    rabitq         one bit a dimension after centring, and two factors (Gao and Long 2024, arXiv:2405.12497)
    pq4, pq8       product quantization, 4 bits for 4 or 8 dimensions, scanned by registers

All are ordinary Faiss indexes, and all but the signs compare by L2. On vectors of unit length the nearest by
L2 are the most similar, and centring, which RaBitQ and principal components need, changes no distance.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.reports import FirstStageChoice, FirstStageTrial
from dml.retrieval.tune import HeldOut, K

KINDS = ("pca16", "pca32", "signs", "rabitq", "pq4", "pq8")
SHORTLISTS = (100, 1_000)
"""Candidates that are tried."""
_WIDENED = 4
_LARGEST_SHARE = 0.1  # of the sample as candidates: with more, any codes are good enough
_HAMMING_FACTOR = 4
"""Candidates by Hamming distance / candidates by the query in full."""
_SAMPLE_ROWS, _SAMPLE_QUERIES, _TIMED_QUERIES = 1 << 16, 200, 32


class Vectors(Protocol):
    """The vectors of an index's rows."""

    @property
    def rows(self) -> int:
        """N."""

    @property
    def dim(self) -> int:
        """D."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, D) vectors of the rows."""

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All vectors in order."""

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(Q, k) the most similar of all rows, exactly."""

    def search_among(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(Q, k) the most similar among (n,) ascending rows, exactly."""


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
        assert self._signs is not None
        few = self.index.search(queries, min(_HAMMING_FACTOR * number, int(self.index.ntotal)))[1]
        if few.shape[1] == number:
            return few
        dim = queries.shape[1]
        chosen = np.empty((len(queries), number), dtype=np.int64)
        for place, (query, rows) in enumerate(zip(queries - self._medians, few, strict=True)):
            bits = np.unpackbits(self._signs[rows], axis=1, count=dim, bitorder="little")
            # Twice the sum over the set bits, less the sum of all, is the sum with the bits' signs.
            sums = bits.astype(np.float32) @ query
            chosen[place] = rows[np.argpartition(-sums, number - 1)[:number]]
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
    for place, rows in enumerate(candidates):
        values, found = vectors.search_among(queries[place : place + 1], k, rows)
        similarities[place, : values.shape[1]], nearest[place, : found.shape[1]] = values[0], found[0]
    return similarities, nearest


def choose_first_stage(
    vectors: Vectors,
    held_out: HeldOut,
    *,
    target: float,
    kinds: Sequence[str] = KINDS,
    shortlists: Sequence[int] = SHORTLISTS,
    sample_rows: int = _SAMPLE_ROWS,
    seed: int = 0,
) -> tuple[faiss.Index | None, FirstStageChoice]:
    """Try first stages on a sample, and fill the cheapest that reaches the recall target with all vectors.

    The cheapest: of the least processor time, where the scan takes as many times longer as there are more
    rows. Its recall is then measured on all rows, where neighbours are harder to find than in the sample. It
    may need up to four times the candidates; if that is not enough, the next cheapest is filled.

    Args:
        vectors: of the index.
        held_out: rows of the index, with their exact neighbours among all.
        target: recall@10 of the candidates, compared in full.
        kinds: that are tried.
        shortlists: candidates that are tried, ascending; of few rows only the first.
        sample_rows: at most.
        seed: of the sample.

    Returns:
        The filled index, None where none reaches the target; and the figures of all that were tried.
    """
    sample, in_sample = _sampled(vectors, held_out, sample_rows, seed)
    trials: list[FirstStageTrial] = []
    trained: dict[str, faiss.Index] = {}
    for kind in kinds:
        factory = factory_of(kind, vectors.dim)
        if factory is None:
            continue
        index = faiss.index_factory(vectors.dim, factory, faiss.METRIC_L2)
        index.train(sample.vectors)
        index.add(sample.vectors)
        trained[kind] = index
        trials += [
            measured(kind, FirstStage(index), sample, in_sample, shortlist)
            for shortlist in shortlists
            if shortlist <= _LARGEST_SHARE * sample.rows or shortlist == shortlists[0]
        ]
    scale = vectors.rows / sample.rows
    reaching = [trial for trial in trials if trial.recall >= target]
    reaching.sort(key=lambda trial: scale * trial.scan_us + trial.compare_us)
    chosen, filled = None, None
    refused: list[FirstStageTrial] = []
    for kind in dict.fromkeys(trial.kind for trial in reaching):
        shortlist = next(trial.shortlist for trial in reaching if trial.kind == kind)
        index = trained[kind]
        index.reset()
        for block in vectors.blocks():
            index.add(np.ascontiguousarray(block))
        stage, widest = FirstStage(index), _WIDENED * shortlist
        on_all = measured(kind, stage, vectors, held_out, shortlist)
        while on_all.recall < target and 2 * on_all.shortlist <= widest:
            on_all = measured(kind, stage, vectors, held_out, 2 * on_all.shortlist)
        if on_all.recall >= target:
            chosen, filled = on_all, index
            break
        refused.append(on_all)
    choice = FirstStageChoice(
        target=target,
        num_queries=len(held_out.rows),
        sample_rows=sample.rows,
        chosen=chosen,
        refused=tuple(refused),
        trials=tuple(trials),
    )
    return filled, choice


def measured(
    kind: str, stage: FirstStage, vectors: Vectors, held_out: HeldOut, shortlist: int
) -> FirstStageTrial:
    """What a first stage finds and costs, with its candidates compared in full."""
    wanted = held_out.truth.shape[1] + 1  # a query finds itself
    candidates = stage.candidates(held_out.queries, shortlist)
    nearest = compared_in_full(vectors, held_out.queries, wanted, candidates)[1]
    scan_us, compare_us = _cpu_us(stage, vectors, held_out, shortlist)
    return FirstStageTrial(
        kind=kind,
        bytes_per_vector=stage.bytes_per_vector,
        shortlist=shortlist,
        recall=held_out.recall(nearest),
        mate_at_1=held_out.mate_at_1(nearest),
        scan_us=scan_us,
        compare_us=compare_us,
    )


def _cpu_us(stage: FirstStage, vectors: Vectors, held_out: HeldOut, shortlist: int) -> tuple[float, float]:
    """Median processor time of single queries on one thread: for candidates, and for comparing them."""
    k, threads, taken = held_out.truth.shape[1], faiss.omp_get_max_threads(), []
    faiss.omp_set_num_threads(1)
    try:
        for place in range(min(len(held_out.queries), _TIMED_QUERIES)):
            query = held_out.queries[place : place + 1]
            start = time.thread_time()
            candidates = stage.candidates(query, shortlist)
            middle = time.thread_time()
            compared_in_full(vectors, query, k, candidates)
            taken.append((middle - start, time.thread_time() - middle))
    finally:
        faiss.omp_set_num_threads(threads)
    scan, compare = np.median(taken, axis=0) * 1e6
    return float(scan), float(compare)


@dataclass(frozen=True)
class _Sample:
    """Vectors in memory."""

    vectors: NDArray[np.float32]

    @property
    def rows(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.vectors[rows]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        yield self.vectors

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = faiss.knn(
            queries, self.vectors, k, metric=faiss.METRIC_INNER_PRODUCT
        )
        return found

    def search_among(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        similarities = queries @ self.vectors[rows].T
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(similarities, order, axis=1), rows[order]


def _sampled(vectors: Vectors, held_out: HeldOut, sample_rows: int, seed: int) -> tuple[_Sample, HeldOut]:
    """Random rows, and some of them as queries with their neighbours among these rows."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(vectors.rows, min(sample_rows, vectors.rows), replace=False))
    sample = _Sample(np.ascontiguousarray(vectors.take(rows)))
    chosen = np.sort(rng.choice(len(rows), min(_SAMPLE_QUERIES, len(rows)), replace=False))
    queries = sample.vectors[chosen]
    nearest = sample.search(queries, min(K, len(rows) - 1) + 1)[1]
    labels = None if held_out.labels is None else held_out.labels[rows]
    return sample, HeldOut.of(chosen, queries, nearest, labels, take=sample.take)

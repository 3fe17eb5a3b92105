"""An index's vectors in; the cheapest first stage that reaches a recall target, and the figures of all, out.

Which codes are best depends on the embedding: where a few directions have most of the variance, principal
components find nearly all neighbours and signs few; where all directions have the same, it is the other way
round. So each kind is tried on a sample of the index's own vectors when it is built, and the cheapest that
reaches the recall target is kept.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidSetting
from dml.reports import FirstStageChoice, FirstStageTrial
from dml.retrieval.first_stage import KINDS, FirstStage, compared_in_full, factory_of
from dml.retrieval.held_out import HeldOut, K
from dml.retrieval.vectors import Vectors

SHORTLISTS = (100, 1_000)
"""Candidates that are tried."""
_WIDENED = 4
"""Candidates that all rows may need / those that the sample needed."""
_LARGEST_SHARE = 0.1  # of the sample as candidates: with more, any codes are good enough
_SAMPLE_ROWS, _SAMPLE_QUERIES, _TIMED_QUERIES = 1 << 16, 200, 32
_FEWEST_ROWS = {"pca16": 16, "pca32": 32, "signs": 2, "rabitq": 2, "pq4": 16, "pq8": 16}
"""Rows that a kind is trained on: as many as it has components, or centroids of 4 bits, and one to find."""


def require_first_stage(kind: str, rows: int, dim: int) -> None:
    """Refuse a kind of first stage that cannot be trained on these vectors.

    Args:
        kind: one of `KINDS`.
        rows: vectors of the index.
        dim: D.

    Raises:
        InvalidSetting: it does not suit the dimension, or the rows are too few.
    """
    fewest = _FEWEST_ROWS[kind]
    if factory_of(kind, dim) is None:
        number = int(kind.lstrip("pcaq"))
        wanted = f"above {number}" if kind.startswith("pca") else f"a multiple of {number} above {number}"
        raise InvalidSetting(
            f"The dimension of vectors must be {wanted} for first_stage {kind}; it is {dim}. Use auto, signs "
            "or rabitq, or leave it out."
        )
    if rows < fewest:
        raise InvalidSetting(
            f"An index, or each shard, must have at least {fewest} rows for first_stage {kind}; it has "
            f"{rows}. Use auto, which takes what so few rows allow, or leave it out."
        )


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
    trained = {kind: index for kind in kinds if (index := _trained(kind, sample)) is not None}
    trials = [
        _measured(kind, FirstStage(index), sample, in_sample, shortlist)
        for kind, index in trained.items()
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
        on_all = _filled(kind, index, vectors, held_out, shortlist, target)
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


def _trained(kind: str, sample: "_Sample") -> faiss.Index | None:
    """An index of a kind, trained on the sample and filled with it.

    None: it does not suit the dimension, or the rows are too few to train it.
    """
    factory = factory_of(kind, sample.dim)
    if factory is None or sample.rows < _FEWEST_ROWS[kind]:
        return None
    index = faiss.index_factory(sample.dim, factory, faiss.METRIC_L2)
    index.train(sample.vectors)
    index.add(sample.vectors)
    return index


def _filled(
    kind: str, index: faiss.Index, vectors: Vectors, held_out: HeldOut, shortlist: int, target: float
) -> FirstStageTrial:
    """Fill a trained index with all vectors; the figures with the fewest candidates that reach the target.

    Without any, those with the most that were tried.
    """
    index.reset()
    for block in vectors.blocks():
        index.add(np.ascontiguousarray(block))
    stage, widest = FirstStage(index), _WIDENED * shortlist
    on_all = _measured(kind, stage, vectors, held_out, shortlist)
    while on_all.recall < target and 2 * on_all.shortlist <= widest:
        on_all = _measured(kind, stage, vectors, held_out, 2 * on_all.shortlist)
    return on_all


def _measured(
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
        for number in range(min(len(held_out.queries), _TIMED_QUERIES)):
            query = held_out.queries[number : number + 1]
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

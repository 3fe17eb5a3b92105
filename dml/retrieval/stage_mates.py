"""How often each stage of a search finds a mate: labelled rows as queries in, a figure for each stage out.

A mate is another row of the query's label. Where there are classes that the embedding was not trained on, the
queries are of those.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.reports import StageMates
from dml.retrieval.cascade import IN_FULL, Cascade
from dml.retrieval.held_out import K
from dml.retrieval.rerankers import (
    CANDIDATES,
    K_RECIPROCAL,
    NUM_EXPANDING,
    QUERY_EXPANSION,
    expanded,
    k_reciprocal_distances,
)
from dml.retrieval.vectors import FlatVectors

_NUM_QUERIES = 100


def measure_stages(
    index: faiss.Index,
    vectors: FlatVectors,
    labels: NDArray[np.int64] | None,
    *,
    name: str,
    cascade: Cascade | None = None,
    may_query: NDArray[np.bool_] | None = None,
    num_queries: int = _NUM_QUERIES,
    seed: int = 0,
) -> tuple[StageMates, ...]:
    """Search for the mates of some rows by every stage that a search without a filter can have.

    Args:
        index: as it is searched where a cascade is not.
        vectors: of its rows.
        labels: (N,) of its rows; None: there are none.
        name: of the stage that searches the index.
        cascade: searched instead; None: there is none.
        may_query: (N,) the rows that may be queries; None: all.
        num_queries: at most.
        seed: of their choice.

    Returns:
        The index, the stages of the cascade, and the re-rankers; none where no row has a mate.
    """
    rows = _rows_with_mates(labels, may_query, num_queries, seed)
    if labels is None or not len(rows):
        return ()
    search = _Search(index, vectors, name, cascade)
    stages: dict[str, list[_HandedOn]] = {}
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        for row, query in zip(rows, _unit(vectors.take(rows)), strict=True):
            for found in search.stages(row, query):
                stages.setdefault(found.stage, []).append(found)
    finally:
        faiss.omp_set_num_threads(threads)
    is_ordered = dict.fromkeys(stages, True)
    if cascade is not None:
        is_ordered[cascade.name] = False
    return tuple(
        _summed_up(found, labels[rows], labels, is_ordered[stage]) for stage, found in stages.items()
    )


def _rows_with_mates(
    labels: NDArray[np.int64] | None, may_query: NDArray[np.bool_] | None, number: int, seed: int
) -> NDArray[np.int64]:
    if labels is None:
        return np.empty(0, dtype=np.int64)
    has_mate = np.bincount(labels)[labels] > 1
    rows = np.flatnonzero(has_mate if may_query is None else has_mate & may_query)
    return np.random.default_rng(seed).choice(rows, min(number, len(rows)), replace=False)


@dataclass(frozen=True)
class _HandedOn:
    """What a stage hands on for one query, without the query itself."""

    stage: str
    rows: NDArray[np.int64]
    cpu_us: float


class _Search:
    """A search without a filter, stage by stage."""

    def __init__(self, index: faiss.Index, vectors: FlatVectors, name: str, cascade: Cascade | None) -> None:
        self._index, self._vectors, self._name, self._cascade = index, vectors, name, cascade

    def stages(self, row: np.int64, query: NDArray[np.float32]) -> Iterator[_HandedOn]:
        def handed_on(stage: str, rows: NDArray[np.int64], start: float) -> _HandedOn:
            taken = time.thread_time() - start
            return _HandedOn(stage, rows[(rows >= 0) & (rows != row)], 1e6 * taken)

        start = time.thread_time()
        yield handed_on(self._name, self._by_index(query, K + 1), start)
        if self._cascade is not None:
            start = time.thread_time()
            candidates = self._cascade.candidates(query[None], K + 1)
            yield handed_on(self._cascade.name, candidates[0], start)
            start = time.thread_time()
            _, compared = self._cascade.compared(query[None], K + 1, candidates)
            yield handed_on(IN_FULL, compared[0], start)
        near = self._nearest(query, CANDIDATES + 1)
        near = near[(near >= 0) & (near != row)][:CANDIDATES]
        found = _unit(self._vectors.take(near))
        start = time.thread_time()
        again = self._nearest(expanded(query, found[:NUM_EXPANDING]), K + 1)
        yield handed_on(QUERY_EXPANSION, again, start)
        start = time.thread_time()
        order = np.argsort(k_reciprocal_distances(query, found), kind="stable")
        yield handed_on(K_RECIPROCAL, near[order], start)

    def _nearest(self, query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """(k,) rows, the most similar first; -1 where there are too few."""
        if self._cascade is None or not self._cascade.suits(k):
            return self._by_index(query, k)
        candidates = self._cascade.candidates(query[None], k)
        _, rows = self._cascade.compared(query[None], k, candidates)
        return rows.ravel()

    def _by_index(self, query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = self._index.search(query[None], k)
        return found[1].ravel()


def _summed_up(
    found: Sequence[_HandedOn], own: NDArray[np.int64], labels: NDArray[np.int64], is_ordered: bool
) -> StageMates:
    rows = [query.rows[:K] if is_ordered else query.rows for query in found]
    hits = [labels[of_query] == label for of_query, label in zip(rows, own, strict=True)]
    return StageMates(
        stage=found[0].stage,
        num_queries=len(own),
        handed_on=max(map(len, rows)),
        mate_recall=float(np.mean([hit.any() for hit in hits])),
        mate_at_1=float(np.mean([hit[:1].any() for hit in hits])) if is_ordered else None,
        cpu_us=float(np.median([query.cpu_us for query in found])),
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit

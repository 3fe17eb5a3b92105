"""The cost model of an index's plans, fitted to times of this machine: an index in, costs out."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.retrieval.attributes.bits import bitmap_of
from dml.retrieval.execution import scan
from dml.retrieval.ground_truth import K
from dml.retrieval.lists import InvertedLists
from dml.retrieval.probe import processor_name
from dml.retrieval.query_costs import Costs
from dml.retrieval.recall_table import RecallTable, depths_of
from dml.retrieval.vectors import Vectors

_TIMED_QUERIES, _REPEATS = 32, 2
_TIMED_COUNTS = (10, 300, 3_000, 30_000)
_TIMED_RANGES = (10_000, 30_000)
_TIMED_PROBES = (1, 8, 32, 128)
# Not of all items: compared one after the other, each costs half of one that is fetched by itself.
_TIMED_SHARES = (0.3, 0.1, 0.03, 0.01)


def fit_costs(index: faiss.Index, vectors: Vectors, table: RecallTable, *, seed: int = 0) -> Costs | None:
    """Time both plans on one thread, one query a call, and fit the cost model.

    Returns:
        None: the index has no inverted lists.
    """
    lists = InvertedLists.of(index)
    if lists is None:
        return None
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        return _fit(lists, vectors, int(index.ntotal), table, np.random.default_rng(seed))
    finally:
        faiss.omp_set_num_threads(threads)


def _fit(
    lists: InvertedLists, vectors: Vectors, num_rows: int, table: RecallTable, rng: np.random.Generator
) -> Costs:
    chosen = vectors.take(np.sort(rng.choice(num_rows, min(_TIMED_QUERIES, num_rows), replace=False)))
    queries = [chosen[n : n + 1] for n in range(len(chosen))]
    scans, scan_times = [], []
    timed = [
        (np.sort(rng.choice(num_rows, n, replace=False)), False) for n in _counts(_TIMED_COUNTS, num_rows)
    ]
    timed += [(np.arange(num_rows - n, num_rows), True) for n in _counts(_TIMED_RANGES, num_rows)]
    for rows, is_range in timed:
        scans.append([1.0, len(rows) * (not is_range), len(rows) * is_range])
        scan_times.append(_microseconds([partial(vectors.search_among, query, K, rows) for query in queries]))
    probed, probe_times = [], []
    for share in _TIMED_SHARES:
        bitmap = bitmap_of(np.flatnonzero(rng.random(num_rows) < share), num_rows)
        for probes in sorted({min(probes, lists.num_lists) for probes in _TIMED_PROBES}):
            looked_at = min(2 * probes, lists.num_lists)
            parameters = lists.parameters(bitmap, looked_at)
            ids = np.mean([lists.sizes[lists.near(query, probes).numbers].sum() for query in queries])
            probed.append([1.0, float(probes), float(ids), float(ids * share)])

            def search(
                query: NDArray[np.float32],
                probes: int = probes,
                looked_at: int = looked_at,
                parameters: faiss.SearchParametersIVF = parameters,
            ) -> object:
                near = lists.near(query, looked_at)
                sizes = lists.sizes[near.numbers]
                within = sizes.cumsum(axis=1)  # as a search chooses its lists, in two rounds
                depths = depths_of(sizes, sizes, within, table.k)
                table.margins_for(depths, table.k, table.margins_at(table.k))
                order = np.arange(sizes.shape[1])[None, :]
                first, rest = order < (probes + 1) // 2, (order >= (probes + 1) // 2) & (order < probes)
                for taken in (first, rest):
                    scan(lists, vectors, near, taken, K, parameters, table.candidates, query)
                return None

            probe_times.append(_microseconds([partial(search, query) for query in queries]))
    scan_us, scan_row_us, range_row_us = _least_squares(scans, scan_times)
    index_us, list_us, id_us, match_us = _least_squares(probed, probe_times)
    return Costs(
        processor=processor_name(),
        scan_us=scan_us,
        scan_row_us=scan_row_us,
        range_row_us=range_row_us,
        index_us=index_us,
        list_us=list_us,
        id_us=id_us,
        match_us=match_us,
    )


def _counts(counts: Sequence[int], num_rows: int) -> list[int]:
    """Those of up to half of the rows, and that."""
    return sorted({min(count, num_rows // 2) for count in counts})


def _microseconds(calls: Sequence[Callable[[], object]]) -> float:
    """Median over the calls, CPU time of this thread.

    The calls take turns: repeated at once, each would find its own lists in the processor's cache.
    """
    times = np.full((_REPEATS, len(calls)), np.inf)
    for repeat in range(_REPEATS):
        for number, call in enumerate(calls):
            start = time.thread_time_ns()
            call()
            times[repeat, number] = time.thread_time_ns() - start
    return float(np.median(times.min(axis=0))) / 1e3


def _least_squares(columns: list[list[float]], times: list[float]) -> list[float]:
    """Coefficients of 0 or more that fit the times with the least relative error."""
    weights = 1 / np.array(times)
    matrix = np.array(columns) * weights[:, None]
    kept = list(range(matrix.shape[1]))
    while True:
        scale = np.linalg.norm(matrix[:, kept], axis=0)
        solution = np.linalg.lstsq(matrix[:, kept] / scale, np.ones(len(times)), rcond=None)[0] / scale
        if (solution >= 0).all() or len(kept) == 1:
            break
        del kept[int(np.argmin(solution))]
    coefficients = [0.0] * matrix.shape[1]
    for column, value in zip(kept, solution, strict=True):
        coefficients[column] = max(float(value), 0.0)
    return coefficients

"""What the planner must know of an index, measured when it is built: lists for a recall target, and costs.

Queries are rows of the index that no filter contains. Filters match a share of the rows that is independent
of the query (random), or the rows most similar to some row, with queries from among them (inside) and from
elsewhere (outside).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.metrics.intervals import wilson_interval
from dml.retrieval.attributes.bits import bitmap_of
from dml.retrieval.execution import LOOKED_AT, Vectors, matches_per_list, nearest_among, scan
from dml.retrieval.lists import InvertedLists
from dml.retrieval.plan import Correlation, Costs, Depths, RecallCell, RecallStep, RecallTable
from dml.retrieval.probe import processor_name

SELECTIVITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0001)
RECALL_TARGET = 0.99
FEWEST_ROWS = 20_000
"""Below, comparing with every match takes at most a millisecond: nothing is measured."""
BUDGET_S = 60.0
_K = 10
_CANDIDATES = (2, 4, 8, 16, 32, 64)
_MARGINS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
_MOST_RARE = (4.0, 3.0, 2.0, 1.5)
_KEPT_BY_CODES = 0.9995  # of the neighbours that the lists reach
_FEWEST_BY_INDEX = 16  # queries; fewer say nothing of the recall of their lists
_MOST_QUERIES, _FEWEST_QUERIES = 256, 32
_QUERIES_PER_ANCHOR, _FEWEST_ANCHORS = 32, 2
_BLOCK_ROWS = 1 << 13
_TIMED_QUERIES, _REPEATS = 32, 2
_TIMED_COUNTS = (10, 300, 3_000, 30_000)
_TIMED_PROBES = (1, 8, 64, 512, 4_096)
_TIMED_SHARES = (1.0, 0.1, 0.01)
_FLOPS = 2e10  # of a matrix product on one core, for the estimate of a calibration's time


@dataclass(frozen=True)
class _Filter:
    """Rows that match, and held-out queries."""

    selectivity: float
    correlation: Correlation
    rows: NDArray[np.int64]
    queries: NDArray[np.int64]


def measure_recall(
    index: faiss.Index,
    vectors: Vectors,
    *,
    target: float = RECALL_TARGET,
    num_queries: int = _MOST_QUERIES,
    selectivities: tuple[float, ...] = SELECTIVITIES,
    seed: int = 0,
) -> RecallTable | None:
    """The lists to scan under filters so that recall@10 reaches a target.

    The list of each true neighbour tells how many lists its query needs. Steps are the lists that filters
    independent of the query need. The margin is the least with which correlated filters reach the target too.

    Args:
        index: a filled index.
        vectors: its rows' vectors.
        target: of the lower end of the recall's 95 % interval at each step, and of the recall of each cell.
        num_queries: held-out queries of each selectivity and correlation.
        selectivities: matching rows / rows.
        seed: of queries and filters.

    Returns:
        None: the index has no inverted lists, cannot scan them under a bitmap, or misses the target.
    """
    lists = InvertedLists.of(index)
    if lists is None:
        return None
    num_rows = int(index.ntotal)
    list_of_row = lists.list_of_rows(num_rows)
    rng = np.random.default_rng(seed)
    cases = _filters(vectors, num_rows, num_queries, selectivities, rng)
    measured = [_measure(lists, vectors, case, list_of_row) for case in cases]
    random = [part for part in measured if part.filter.correlation == "random"]
    steps = _steps(lists, vectors, random, target, num_rows)
    try:
        candidates = _candidates(lists, vectors, random, steps, num_rows)
    except RuntimeError:  # Faiss: such lists are not scanned under a selector
        return None
    if not steps or candidates is None:
        return None
    for margin, most_rare in product(_MARGINS, _MOST_RARE):
        table = RecallTable(
            target=target,
            k=_K,
            num_lists=lists.num_lists,
            candidates=candidates,
            margin=margin,
            most_rare=most_rare,
            steps=tuple(steps),
            cells=(),
        )
        cells, of_lists = _cells(table, measured, num_rows)
        if min(of_lists, default=1.0) >= target and min(cell.recall for cell in cells) >= target:
            return table.model_copy(update={"cells": tuple(cells)})
    return None


def calibrate_plans(
    index: faiss.Index,
    vectors: Vectors,
    *,
    fewest_rows: int = FEWEST_ROWS,
    budget_s: float = BUDGET_S,
) -> tuple[RecallTable | None, Costs | None]:
    """Measure what the planner needs of an index when it is built.

    A flat index, a graph and a small index need nothing: under a filter they compare with every match.

    Args:
        index: a filled index.
        vectors: its rows' vectors.
        fewest_rows: smaller indexes are not measured.
        budget_s: time for the exact neighbours of the held-out queries, by an estimate; with 32 queries, the
            fewest, it can take longer.

    Returns:
        Recall table and costs; None: not measured, or the index has no lists that reach the recall target.
    """
    if index.ntotal < fewest_rows or InvertedLists.of(index) is None:
        return None, None
    queries = affordable_queries(int(index.ntotal), int(index.d), budget_s)
    table = measure_recall(index, vectors, num_queries=queries)
    return (None, None) if table is None else (table, fit_costs(index, vectors, table))


def affordable_queries(num_rows: int, dim: int, budget_s: float) -> int:
    """Held-out queries whose exact neighbours can be found within a time, between 32 and 256."""
    shares = SELECTIVITIES[0] + 3 * sum(SELECTIVITIES[1:])
    seconds_each = 2.0 * num_rows * dim * shares / _FLOPS
    return int(np.clip(budget_s / seconds_each, _FEWEST_QUERIES, _MOST_QUERIES))


def _filters(
    vectors: Vectors,
    num_rows: int,
    num_queries: int,
    selectivities: tuple[float, ...],
    rng: np.random.Generator,
) -> Iterator[_Filter]:
    held_out = np.sort(rng.choice(num_rows, min(num_queries, num_rows // 4), replace=False))
    others = np.setdiff1d(np.arange(num_rows), held_out, assume_unique=True)
    usable = [share for share in selectivities if share * num_rows >= 2 * _K]
    for share in usable:
        size = min(int(share * num_rows), len(others))
        rows = others if share == 1.0 else np.sort(rng.choice(others, size, replace=False))
        yield _Filter(share, "random", rows, held_out)
    num_anchors = max(num_queries // _QUERIES_PER_ANCHOR, _FEWEST_ANCHORS)
    each = max(num_queries // num_anchors, 1)
    for anchor in rng.choice(num_rows, num_anchors, replace=False):
        by_similarity = _by_similarity(vectors, num_rows, int(anchor))
        for share in usable:
            size = int(share * num_rows)
            if share == 1.0:
                continue
            inside = rng.choice(by_similarity[:size], min(each, size // 2), replace=False)
            outside = rng.choice(by_similarity[size:], min(each, num_rows - size), replace=False)
            rows = np.setdiff1d(by_similarity[:size], inside, assume_unique=True)
            rows.sort()
            yield _Filter(share, "inside", rows, np.sort(inside))
            yield _Filter(share, "outside", rows, np.sort(outside))


def _by_similarity(vectors: Vectors, num_rows: int, anchor: int) -> NDArray[np.int64]:
    """All rows, the most similar to one of them first."""
    vector = vectors.take(np.array([anchor]))[0]
    similarities = np.empty(num_rows, dtype=np.float32)
    for start in range(0, num_rows, _BLOCK_ROWS):
        block = np.arange(start, min(start + _BLOCK_ROWS, num_rows))
        similarities[block] = vectors.take(block) @ vector
    return np.argsort(-similarities, kind="stable")


@dataclass(frozen=True)
class _Measured:
    """For each query of a filter: its true neighbours, by how many lists each is reached, and its depth."""

    filter: _Filter
    truth: NDArray[np.int64]
    """(Q, k)"""
    reached_by: NDArray[np.int64]
    """(Q, k)"""
    depths: Depths


def _measure(
    lists: InvertedLists, vectors: Vectors, case: _Filter, list_of_row: NDArray[np.int32]
) -> _Measured:
    queries = vectors.take(case.queries)
    truth = nearest_among(vectors, queries, case.rows, _K)
    numbers = lists.near(queries, lists.num_lists).numbers
    # An approximate quantizer may leave lists out: they are reached by more lists than there are.
    ranks = np.full((len(queries), lists.num_lists + 1), lists.num_lists, dtype=np.int64)
    np.put_along_axis(ranks, numbers, np.arange(lists.num_lists)[None, :], axis=1)
    ranks[:, -1] = lists.num_lists
    per_list = matches_per_list(case.rows, list_of_row, lists.num_lists)
    return _Measured(
        filter=case,
        truth=truth,
        reached_by=np.take_along_axis(ranks, list_of_row[truth], axis=1) + 1,
        depths=Depths.of(lists.sizes[numbers], per_list[numbers], _K),
    )


def _steps(
    lists: InvertedLists, vectors: Vectors, random: list[_Measured], target: float, num_rows: int
) -> list[RecallStep]:
    """Until one is not reached by all lists."""
    steps: list[RecallStep] = []
    for part in random:
        probes = _fewest_probes(part.reached_by, lists.num_lists, target)
        if probes is None:
            break
        probes = max([probes, *(step.probes for step in steps)])
        ids = lists.sizes[lists.near(vectors.take(part.filter.queries), probes).numbers].sum(axis=1)
        share = min(float(ids.mean()) / num_rows, 1.0)
        steps.append(RecallStep(selectivity=part.filter.selectivity, probes=probes, ids_share=share))
    return steps


def _fewest_probes(reached_by: NDArray[np.int64], num_lists: int, target: float) -> int | None:
    """The fewest lists at which the lower end of the recall's interval reaches the target."""
    low, high = 1, num_lists + 1
    while low < high:
        middle = (low + high) // 2
        if _interval((reached_by <= middle).mean(axis=1))[1] >= target:
            high = middle
        else:
            low = middle + 1
    return low if low <= num_lists else None


def _candidates(
    lists: InvertedLists, vectors: Vectors, random: list[_Measured], steps: list[RecallStep], num_rows: int
) -> int | None:
    """The fewest candidates per answer among which codes keep the neighbours in the lists; None: none.

    Raises:
        RuntimeError: Faiss cannot scan these lists under a selector.
    """
    if lists.keeps_vectors:
        return 1
    for candidates in _CANDIDATES:
        kept = []
        for part, step in zip(random, steps, strict=False):
            queries = vectors.take(part.filter.queries)
            bitmap = bitmap_of(part.filter.rows, num_rows)
            near = lists.near(queries, step.probes)
            taken = np.ones(near.numbers.shape, np.bool_)
            _, rows = scan(lists, vectors, near, taken, _K, bitmap, candidates, queries)
            reached = part.reached_by <= step.probes
            found = (part.truth[:, :, None] == rows[:, None, :]).any(axis=2)
            kept.append((found & reached).sum() / max(int(reached.sum()), 1))
        if min(kept, default=1.0) >= _KEPT_BY_CODES:
            return candidates
    return None


def _cells(
    table: RecallTable, measured: list[_Measured], num_rows: int
) -> tuple[list[RecallCell], list[float]]:
    """The recall of each selectivity and correlation with a table's lists; and that of the queries
    which these answer, with a standard error, where there are enough."""
    by_cell: dict[tuple[float, Correlation], list[tuple[NDArray[np.float64], NDArray[np.bool_]]]] = {}
    for part in measured:
        needed = table.lists_for(part.depths, count=len(part.filter.rows), rows=num_rows, k=_K)
        recalls = np.where(needed > 0, (part.reached_by <= needed[:, None]).mean(axis=1), 1.0)
        key = part.filter.selectivity, part.filter.correlation
        by_cell.setdefault(key, []).append((recalls, needed > 0))
    cells, of_lists = [], []
    for (selectivity, correlation), parts in by_cell.items():
        recalls, answered = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        recall, low, high = _interval(recalls)
        if answered.sum() >= _FEWEST_BY_INDEX:
            of_lists.append(_upper(recalls[answered]))
        cells.append(
            RecallCell(
                selectivity=selectivity,
                correlation=correlation,
                by_index=float(answered.mean()),
                recall=recall,
                low=low,
                high=high,
                num_queries=len(recalls),
            )
        )
    return cells, of_lists


def _upper(recalls: NDArray[np.float64]) -> float:
    """Mean and a standard error: lists are at fault only where chance does not explain what they miss."""
    return float(recalls.mean() + recalls.std() / np.sqrt(len(recalls)))


def _interval(recalls: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of the queries' recalls and its 95 % interval.

    A query's k neighbours are found or missed together, so they count as fewer independent ones: as many as
    would give the variance that the queries' recalls have.
    """
    mean = float(recalls.mean())
    variance = float(recalls.var(ddof=1)) if len(recalls) > 1 else 0.0
    trials = len(recalls) * _K
    if variance > 0:
        trials = int(np.clip(mean * (1 - mean) / variance * len(recalls), len(recalls), trials))
    interval = wilson_interval(round(mean * trials), trials)
    return mean, min(interval.low, mean), max(interval.high, mean)


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
    for count in sorted({min(count, num_rows // 2) for count in _TIMED_COUNTS}):
        rows = np.sort(rng.choice(num_rows, count, replace=False))
        scans.append([1.0, float(count)])
        calls = [partial(vectors.search_among, query, min(_K, count), rows) for query in queries]
        scan_times.append(_microseconds(calls))
    probed, probe_times = [], []
    for share in _TIMED_SHARES:
        bitmap = bitmap_of(np.flatnonzero(rng.random(num_rows) < share), num_rows)
        for probes in sorted({min(probes, lists.num_lists) for probes in _TIMED_PROBES}):
            ids = np.mean([lists.sizes[lists.near(query, probes).numbers].sum() for query in queries])
            probed.append([1.0, float(probes), float(ids), float(ids * share)])

            def search(
                query: NDArray[np.float32], bitmap: NDArray[np.uint8] = bitmap, probes: int = probes
            ) -> object:
                near = lists.near(query, min(LOOKED_AT * probes, lists.num_lists))
                sizes = lists.sizes[near.numbers]
                depths = Depths.of(sizes, sizes, table.k)  # as a search chooses its lists
                table.lists_for(depths, count=num_rows, rows=num_rows, k=table.k)
                taken = np.arange(sizes.shape[1])[None, :] < probes
                return scan(lists, vectors, near, taken, _K, bitmap, table.candidates, query)

            probe_times.append(_microseconds([partial(search, query) for query in queries]))
    scan_us, scan_row_us = _least_squares(scans, scan_times)
    index_us, list_us, id_us, match_us = _least_squares(probed, probe_times)
    return Costs(
        processor=processor_name(),
        scan_us=scan_us,
        scan_row_us=scan_row_us,
        index_us=index_us,
        list_us=list_us,
        id_us=id_us,
        match_us=match_us,
    )


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
    for place, value in zip(kept, solution, strict=True):
        coefficients[place] = max(float(value), 0.0)
    return coefficients

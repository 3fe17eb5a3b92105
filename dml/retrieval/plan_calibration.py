"""What the planner must know of an index, decided when it is built: lists for a recall target, and costs."""

from itertools import product

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.metrics.intervals import wilson_interval
from dml.retrieval.attributes.bits import bitmap_of
from dml.retrieval.execution import Vectors, scan
from dml.retrieval.ground_truth import GroundTruth, K, draw_cases, find_ground_truth
from dml.retrieval.lists import InvertedLists
from dml.retrieval.plan import Correlation, Costs, RecallCell, RecallStep, RecallTable
from dml.retrieval.plan_costs import fit_costs

SELECTIVITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0001)
RECALL_TARGET = 0.99
FEWEST_ROWS = 20_000
"""Below, comparing with every match takes at most a millisecond: nothing is measured."""
BUDGET_S = 60.0
_CANDIDATES = (2, 4, 8, 16, 32, 64)
_MARGINS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
_MOST_RARE = (4.0, 3.0, 2.0, 1.5)
_KEPT_BY_CODES = 0.9995  # of the neighbours that the lists reach
_FEWEST_BY_INDEX = 16  # queries; fewer say nothing of the recall of their lists
_MOST_QUERIES, _FEWEST_QUERIES = 256, 32
_FLOPS = 2e10  # of a matrix product on one core, for the estimate of a calibration's time


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
    cases = draw_cases(vectors, num_rows, num_queries, selectivities, rng)
    measured = [find_ground_truth(lists, vectors, case, list_of_row) for case in cases]
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
            k=K,
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


def _steps(
    lists: InvertedLists, vectors: Vectors, random: list[GroundTruth], target: float, num_rows: int
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
    lists: InvertedLists, vectors: Vectors, random: list[GroundTruth], steps: list[RecallStep], num_rows: int
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
            _, rows = scan(lists, vectors, near, taken, K, bitmap, candidates, queries)
            reached = part.reached_by <= step.probes
            found = (part.truth[:, :, None] == rows[:, None, :]).any(axis=2)
            kept.append((found & reached).sum() / max(int(reached.sum()), 1))
        if min(kept, default=1.0) >= _KEPT_BY_CODES:
            return candidates
    return None


def _cells(
    table: RecallTable, measured: list[GroundTruth], num_rows: int
) -> tuple[list[RecallCell], list[float]]:
    """The recall of each selectivity and correlation with a table's lists; and that of the queries
    which these answer, with a standard error, where there are enough."""
    by_cell: dict[tuple[float, Correlation], list[tuple[NDArray[np.float64], NDArray[np.bool_]]]] = {}
    for part in measured:
        needed = table.lists_for(part.depths, count=len(part.filter.rows), rows=num_rows, k=K)
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
    trials = len(recalls) * K
    if variance > 0:
        trials = int(np.clip(mean * (1 - mean) / variance * len(recalls), len(recalls), trials))
    interval = wilson_interval(round(mean * trials), trials)
    return mean, min(interval.low, mean), max(interval.high, mean)

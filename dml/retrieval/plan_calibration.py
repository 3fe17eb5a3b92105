"""What the planner must know of an index, decided when it is built: lists for a recall target, and costs."""

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.metrics.intervals import wilson_interval
from dml.retrieval.attributes.bits import bitmap_of
from dml.retrieval.execution import are_first, matches_per_list, scan
from dml.retrieval.ground_truth import GroundTruth, K, draw_cases, find_ground_truth
from dml.retrieval.held_out import num_found
from dml.retrieval.lists import InvertedLists
from dml.retrieval.plan_costs import fit_costs
from dml.retrieval.query_costs import Costs
from dml.retrieval.recall_table import Correlation, RecallCell, RecallStep, RecallTable
from dml.retrieval.vectors import Vectors

SELECTIVITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0001)
RECALL_TARGET = 0.99
FEWEST_ROWS = 20_000
"""Below, comparing with every match takes at most a millisecond: nothing is measured."""
BUDGET_S = 60.0
_CANDIDATES = (2, 4, 8, 16, 32, 64)
_CORRELATED: tuple[Correlation, ...] = ("inside", "outside")
_RARE = 2.0
_KEPT_BY_CODES = 0.9995  # of the neighbours that the lists reach
# With fewer than 38 queries of 10 neighbours the interval of a recall of 1 reaches below 0.99.
_MOST_QUERIES, _FEWEST_QUERIES = 256, 40
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

    The list of each true neighbour tells the margin that its query needs. A step's margin is the least with
    which filters of this selectivity reach the target, whether they are independent of the query or not.

    Args:
        index: a filled index.
        vectors: its rows' vectors.
        target: of the recall; where it is sure, of the lower end of its 95 % interval.
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
    steps = _steps(lists, vectors, measured, list_of_row, target)
    random = [part for part in measured if part.filter.correlation == "random"][: len(steps)]
    try:
        candidates = _candidates(lists, vectors, random, steps, list_of_row)
    except RuntimeError:  # Faiss: such lists are not scanned under a selector
        return None
    if not steps or candidates is None:
        return None
    without_rare = [step.model_copy(update={"rare_margin": None}) for step in steps]
    for promised in (steps, without_rare):
        table = RecallTable(
            target=target,
            k=K,
            num_lists=lists.num_lists,
            candidates=candidates,
            rare=_RARE,
            steps=tuple(promised),
            cells=(),
        )
        cells = _cells(table, measured, num_rows)
        if min(cell.recall for cell in cells) >= target:
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
        budget_s: time for the exact neighbours of the held-out queries, by an estimate; with 40 queries, the
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
    """Held-out queries whose exact neighbours can be found within a time, between 40 and 256."""
    shares = SELECTIVITIES[0] + 3 * sum(SELECTIVITIES[1:])
    seconds_each = 2.0 * num_rows * dim * shares / _FLOPS
    return int(np.clip(budget_s / seconds_each, _FEWEST_QUERIES, _MOST_QUERIES))


def _steps(
    lists: InvertedLists,
    vectors: Vectors,
    measured: list[GroundTruth],
    list_of_row: NDArray[np.int32],
    target: float,
) -> list[RecallStep]:
    """By falling selectivity, until one is not reached by all lists."""
    steps: list[RecallStep] = []
    num_rows = len(list_of_row)
    for part in measured:
        if part.filter.correlation != "random":
            continue
        selectivity = part.filter.selectivity
        margins = [_least_margin([part], target, num_rows, is_rare=False, is_sure=True)]
        rare_margins = []
        for correlation in _CORRELATED:
            parts = [
                other
                for other in measured
                if (other.filter.selectivity, other.filter.correlation) == (selectivity, correlation)
            ]
            # Of a few queries near which matches are as frequent as expected, an interval says little.
            margins.append(_least_margin(parts, target, num_rows, is_rare=False, is_sure=False))
            rare_margins.append(_least_margin(parts, target, num_rows, is_rare=True, is_sure=True))
        # The deeper the matches, the wider: where a margin is less than a former one, that is by chance.
        margin, rare_margin = max(*margins, *(step.margin for step in steps)), max(rare_margins)
        if margin == np.inf:
            break
        near = lists.near(vectors.take(part.filter.queries), lists.num_lists)
        in_lists = matches_per_list(part.filter.rows, list_of_row, lists.num_lists)[near.numbers]
        is_near = near.similarities >= part.similarities[:, None] - margin
        taken = (is_near | are_first(in_lists, in_lists.cumsum(axis=1), K)) & (in_lists > 0)
        ids = (lists.sizes[near.numbers] * taken).sum(axis=1)
        last = lists.num_lists - taken[:, ::-1].argmax(axis=1)
        steps.append(
            RecallStep(
                selectivity=selectivity,
                margin=margin,
                rare_margin=rare_margin if 0 < rare_margin < np.inf else None,
                probes=max([int(last.max()), *(step.probes for step in steps)]),
                lists=float(taken.sum(axis=1).mean()),
                ids_share=min(float(ids.mean()) / num_rows, 1.0),
                matches_share=min(float((in_lists * taken).sum(axis=1).mean()) / len(part.filter.rows), 1.0),
            )
        )
    # Too few queries at some selectivities, as where every item matches: the margin of the others.
    known = [step.rare_margin for step in steps if step.rare_margin is not None]
    largest = max(known, default=None)
    return [
        step.model_copy(update={"rare_margin": largest}) if step.rare_margin is None else step
        for step in steps
    ]


def _least_margin(
    parts: list[GroundTruth], target: float, num_rows: int, *, is_rare: bool, is_sure: bool
) -> float:
    """The least with which the recall of the queries near which matches are rare, or are not, is the target.

    Args:
        parts: filters of one selectivity and correlation.
        target: of the recall.
        num_rows: of the index.
        is_rare: which queries.
        is_sure: the lower end of the recall's 95 % interval reaches the target, not only its mean.

    Returns:
        0: there are too few such queries. Infinite: all lists are not enough.
    """
    chosen = [part.margins[part.is_rare(_RARE, num_rows) == is_rare] for part in parts]
    needed = np.concatenate(chosen) if chosen else np.empty((0, K))
    if len(needed) < _FEWEST_QUERIES:
        return 0.0
    steps = np.unique(np.maximum(needed[needed < np.inf], 0))
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        recall, lower, _ = _interval((needed <= steps[middle]).mean(axis=1))
        if (lower if is_sure else recall) >= target:
            high = middle
        else:
            low = middle + 1
    return float(np.ceil(steps[low] * 1e4) / 1e4) if low < len(steps) else np.inf


def _candidates(
    lists: InvertedLists,
    vectors: Vectors,
    random: list[GroundTruth],
    steps: list[RecallStep],
    list_of_row: NDArray[np.int32],
) -> int | None:
    """The fewest candidates per answer among which codes keep the neighbours in the lists; None: none.

    Raises:
        RuntimeError: Faiss cannot scan these lists under a selector.
    """
    if lists.keeps_vectors:
        return 1
    for candidates in _CANDIDATES:
        kept = []
        for part, step in zip(random, steps, strict=True):
            queries = vectors.take(part.filter.queries)
            near = lists.near(queries, step.probes)
            parameters = lists.parameters(bitmap_of(part.filter.rows, len(list_of_row)), step.probes)
            taken = np.ones(near.numbers.shape, np.bool_)
            _, rows = scan(lists, vectors, near, taken, K, parameters, candidates, queries)
            reached = (list_of_row[part.truth][:, :, None] == near.numbers[:, None, :]).any(axis=2)
            found = np.minimum(num_found(queries, part.truth, rows, vectors.take), reached.sum(axis=1))
            kept.append(found.sum() / max(int(reached.sum()), 1))
        if min(kept, default=1.0) >= _KEPT_BY_CODES:
            return candidates
    return None


def _cells(table: RecallTable, measured: list[GroundTruth], num_rows: int) -> list[RecallCell]:
    """The recall of each selectivity and correlation with a table's margins."""
    by_cell: dict[tuple[float, Correlation], list[tuple[NDArray[np.float64], NDArray[np.bool_]]]] = {}
    for part in measured:
        expected = K * num_rows / len(part.filter.rows)
        margins = table.margins_for(part.depths, expected, table.margins_at(expected))
        by_index = ~np.isnan(margins)
        recalls = np.where(by_index, (part.margins <= margins[:, None]).mean(axis=1), 1.0)
        key = part.filter.selectivity, part.filter.correlation
        by_cell.setdefault(key, []).append((recalls, by_index))
    cells = []
    for (selectivity, correlation), parts in by_cell.items():
        recalls, answered = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        recall, low, high = _interval(recalls)
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
    return cells


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

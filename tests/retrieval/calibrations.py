"""Recall tables and costs to test with, which nothing measured."""

from dml.retrieval.bundle import Calibration
from dml.retrieval.query_costs import Costs
from dml.retrieval.recall_table import RecallCell, RecallStep, RecallTable


def table(
    num_lists: int,
    lists: dict[float, int],
    *,
    target: float = 0.9,
    candidates: int = 1,
    k: int = 10,
    probes: dict[float, int] | None = None,
    margins: dict[float, float] | None = None,
) -> RecallTable:
    """Expected lists by selectivity; the same recall everywhere. All lists are looked at, with no margin."""
    cell = {"by_index": 1.0, "recall": 0.95, "low": 0.92, "high": 0.97, "num_queries": 256}
    return RecallTable(
        target=target,
        k=k,
        num_lists=num_lists,
        candidates=candidates,
        rare=1e9,
        steps=tuple(
            RecallStep(
                selectivity=share,
                margin=0.0 if margins is None else margins[share],
                probes=num_lists if probes is None else probes[share],
                lists=number,
                ids_share=number / num_lists,
                matches_share=number / num_lists,
            )
            for share, number in lists.items()
        ),
        cells=tuple(RecallCell(selectivity=share, correlation="random", **cell) for share in lists),
    )


def costs(
    *,
    scan_row_us: float = 1.0,
    range_row_us: float = 1.0,
    list_us: float = 0.0,
    match_us: float = 0.0,
    processor: str = "any",
) -> Costs:
    return Costs(
        processor=processor,
        scan_us=1.0,
        scan_row_us=scan_row_us,
        range_row_us=range_row_us,
        index_us=1.0,
        list_us=list_us,
        id_us=0.0,
        match_us=match_us,
    )


def eager(num_lists: int, *, candidates: int = 1, match_us: float = 0.0, k: int = 10) -> Calibration:
    """The index costs next to nothing, and always reaches the target with a third of its lists."""
    shares = {1.0: 1, 1e-6: max(num_lists // 3, 1)}
    return Calibration(
        recall_table=table(num_lists, shares, candidates=candidates, k=k), costs=costs(match_us=match_us)
    )

"""Recall tables and costs to test with, which nothing measured."""

from dml.retrieval.bundle import Calibration
from dml.retrieval.plan import Costs, RecallCell, RecallStep, RecallTable


def table(
    num_lists: int, probes: dict[float, int], *, target: float = 0.9, candidates: int = 1
) -> RecallTable:
    """Lists by selectivity; the same recall everywhere."""
    cell = {"by_index": 1.0, "recall": 0.95, "low": 0.92, "high": 0.97, "num_queries": 256}
    return RecallTable(
        target=target,
        k=10,
        num_lists=num_lists,
        candidates=candidates,
        margin=1.0,
        most_rare=1e9,
        steps=tuple(
            RecallStep(selectivity=share, probes=number, ids_share=number / num_lists)
            for share, number in probes.items()
        ),
        cells=tuple(RecallCell(selectivity=share, correlation="random", **cell) for share in probes),
    )


def costs(
    *, scan_row_us: float = 1.0, list_us: float = 0.0, match_us: float = 0.0, processor: str = "any"
) -> Costs:
    return Costs(
        processor=processor,
        scan_us=1.0,
        scan_row_us=scan_row_us,
        index_us=1.0,
        list_us=list_us,
        id_us=0.0,
        match_us=match_us,
    )


def eager(num_lists: int, *, candidates: int = 1, match_us: float = 0.0) -> Calibration:
    """The index costs next to nothing, and always reaches the target with a third of its lists."""
    shares = {1.0: 1, 1e-6: max(num_lists // 3, 1)}
    return Calibration(
        recall_table=table(num_lists, shares, candidates=candidates), costs=costs(match_us=match_us)
    )

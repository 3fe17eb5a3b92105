"""How a search is executed, and why: count of matching items and k in, a physical plan out. No Faiss here.

Two plans serve filtered search. *Exact* compares the query with every matching item: its cost grows with the
count of matches. *Index* scans the nearest inverted lists of an IVF index and skips what does not match: its
cost grows with the lists, and its recall is measured when the index is built. The cheaper of those that reach
the recall target is chosen.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dml.retrieval.query_costs import Costs
from dml.retrieval.recall_table import EXACT, Probes, Recall, RecallTable

NOT_PROMISED = "not promised"
"""How a plan's note ends of queries that are unlike those of its recall."""
Kind = Literal["nothing", "exact", "index_filtered", "index", "cascade"]


class Stage(BaseModel):
    """One stage of a search: what it looked at, and what that cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    budget: int = Field(ge=0, description="rows that it was given to compare, at most")
    recall: float | None = Field(None, description="of what it hands on, where that was measured")
    mate_recall: float | None = Field(
        None, description="labelled queries with a mate among what it hands on, where that was measured"
    )
    cpu_us: float = Field(
        ge=0, allow_inf_nan=False, description="processor time of a query, mean of those searched together"
    )

    def __str__(self) -> str:
        recall = "" if self.recall is None else f", recall {self.recall:.3f}"
        mates = "" if self.mate_recall is None else f", mate-recall {self.mate_recall:.3f}"
        return f"{self.budget} rows, {self.cpu_us:.0f} us{recall}{mates}"


class Plan(BaseModel):
    """How a search is executed, why, what it costs by the model, and the recall with its basis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field(
        description="nothing: no item matches; exact: compared with every match; index_filtered: the nearest "
        "lists, without what does not match; index: as built, without a filter; cascade: the candidates of "
        "small codes, compared in full"
    )
    factory: str = Field(description="Faiss factory of the index")
    count: int = Field(ge=0, description="items that match the filter; all without a filter")
    rows: int = Field(ge=0, description="items of the index")
    k: int = Field(gt=0, description="answers wanted")
    filtered: bool
    probes: int | None = Field(None, description="lists that a query is expected to scan; null: none")
    looked_at: int | None = Field(None, description="its nearest lists, from which these are taken")
    scan_us: float | None = Field(
        None, description="CPU microseconds of exact by the cost model; null: unknown"
    )
    index_us: float | None = Field(None, description="of the index under this filter; null: not possible")
    reason: str
    recall: Recall
    timed_elsewhere: str | None = Field(
        None, description="the processor on which the costs were timed, where it is another than this one"
    )
    stages: tuple[Stage, ...] = Field((), description="of a cascade, in order; measured as it was executed")
    notes: tuple[str, ...] = Field((), description="what happened while it was executed")

    def noting_unlike(self, similarities: NDArray[np.float32]) -> "Plan":
        """The plan, with how many queries are less similar to every item than those of the recall are.

        Args:
            similarities: (Q, k) of the answers, without a filter.
        """
        least = self.recall.least_similarity
        if least is None or not similarities.size:
            return self
        if len(similarities) == 1:  # 0.1 us instead of 3
            if similarities.item(0) >= least:
                return self
            return self.noting(f"this query is unlike the items; the recall is {NOT_PROMISED}")
        unlike = np.count_nonzero(similarities[:, 0] < least)
        if not unlike:
            return self
        return self.noting(
            f"{unlike} of {len(similarities)} queries are unlike the items; their recall is {NOT_PROMISED}"
        )

    def noting(self, *notes: str) -> "Plan":
        """The plan with what happened while it was executed."""
        return self.model_copy(update={"notes": (*self.notes, *(note for note in notes if note))})

    def __str__(self) -> str:
        if self.kind == "cascade":
            first = f"{' -> '.join(stage.name for stage in self.stages)} over {self.rows} items"
        elif not self.filtered:
            first = f"{self.factory} over {self.rows} items"
        elif self.kind == "nothing":
            first = f"none of {self.rows} items matches"
        elif self.kind == "exact":
            first = f"{self.count} of {self.rows} items match, compared with all of them"
        elif self.kind == "index":
            first = f"{self.count} of {self.rows} items match, {self.factory}"
        else:
            first = f"{self.count} of {self.rows} items match, {self.factory} among them, {self.probes} lists"
        return "; ".join((first, *self.notes))

    def explained(self) -> list[tuple[str, str]]:
        """Name and text of each thing there is to say, for people."""
        lines = [("plan", str(self)), ("reason", self.reason), ("matches", f"{self.count} of {self.rows}")]
        if self.scan_us is not None:
            lines.append(("exact", f"{self.scan_us:.0f} us"))
        if self.index_us is not None:
            lines.append(
                ("index", f"{self.index_us:.0f} us" + (f", {self.probes} lists" if self.probes else ""))
            )
        if self.timed_elsewhere is not None:
            lines.append(("timed on", f"{self.timed_elsewhere}: on this processor the costs may differ"))
        lines += [(f"stage {stage.name}", str(stage)) for stage in self.stages]
        return [*lines, ("recall", str(self.recall))]


def choose_plan(
    count: int,
    rows: int,
    k: int,
    costs: Costs | None = None,
    recall_table: RecallTable | None = None,
    *,
    factory: str = "Flat",
    filtered: bool = True,
    is_range: bool = False,
    built: Recall | None = None,
    timed_elsewhere: str | None = None,
) -> Plan:
    """Choose how to search.

    Args:
        count: items that match the filter.
        rows: items of the index.
        k: answers wanted.
        costs: cost model; None: not timed.
        recall_table: lists to scan under a filter; None: the index cannot search under a filter.
        factory: the index's Faiss factory, for the reader.
        filtered: whether there is a filter.
        is_range: whether the matches are a long range of rows, which are compared faster than others.
        built: recall of the index without a filter; None: it is exact.
        timed_elsewhere: the processor on which the costs were timed, where it is another.

    Returns:
        A plan that answers exactly min(k, count) items of recall at least the target of `recall_table`, or
        exactly. Without a filter the index as it was built.

    Raises:
        ValueError: counts that cannot be.

    Example:
        >>> str(choose_plan(60, 120, 5))
        '60 of 120 items match, compared with all of them'
    """
    if not (0 <= count <= rows and k >= 1):
        raise ValueError(f"count must be 0 to rows and k 1 or more; got {count} of {rows} and k {k}.")
    scan_us = None if costs is None else costs.scan(count, is_range=is_range)

    def plan(kind: Kind, reason: str, recall: Recall = EXACT, *, probes: Probes | None = None) -> Plan:
        return Plan(
            kind=kind,
            factory=factory,
            count=count,
            rows=rows,
            k=k,
            filtered=filtered,
            probes=None if probes is None else max(math.ceil(probes.lists), 1),
            looked_at=None if probes is None else probes.looked_at,
            scan_us=scan_us,
            index_us=_index_us(costs, probes, count, rows),
            reason=reason,
            recall=recall,
            timed_elsewhere=timed_elsewhere,
        )

    if count == 0:
        return plan("nothing", "no item matches")
    if not filtered or (count == rows and built is not None):
        why = "there is no filter" if not filtered else "every item matches"
        return plan("index", why, built or EXACT)
    if built is None:
        return plan("exact", f"{factory} compares with every match anyway")
    if k >= count:
        return plan("exact", "every match is wanted")
    if recall_table is None or costs is None:
        return plan("exact", f"{factory} is not calibrated for filters")
    probes = recall_table.probes_for(count, rows, k)
    if probes is None:
        return plan("exact", f"too few match to promise recall {recall_table.target:g} by the index")
    index_us = _index_us(costs, probes, count, rows)
    assert index_us is not None
    assert scan_us is not None
    if scan_us <= index_us:
        return plan("exact", "it costs less than the index", probes=probes)
    return plan("index_filtered", "it costs less than exact", probes.recall, probes=probes)


def _index_us(costs: Costs | None, probes: Probes | None, count: int, rows: int) -> float | None:
    if costs is None or probes is None:
        return None
    matches = probes.matches_share * count
    return costs.index(lists=probes.lists, ids=probes.ids_share * rows, matches=matches)

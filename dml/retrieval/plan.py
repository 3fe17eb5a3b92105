"""How a search is executed, and why: count of matching items and k in, a physical plan out. No Faiss here.

Two plans serve filtered search. *Exact* compares the query with every matching item: its cost grows with the
count of matches. *Index* scans the nearest inverted lists of an IVF index and skips what does not match: its
cost grows with the lists, and its recall is measured when the index is built. The cheaper of those that reach
the recall target is chosen.

    exact(n)         = a + b n                        n: matching items; b is less for a long range of rows
    index(p, ids, m) = c0 + c1 p + c2 ids + c3 m      p: lists, ids: their items, m: matches among these
"""

import math
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Correlation = Literal["random", "inside", "outside"]
"""How matching items lie to the query: independent of it; near it, as its own region; far from it."""
NOT_PROMISED = "not promised"
"""How a plan's note ends of queries that are unlike those of its recall."""
_LOOKED_AT = 2.0
"""Nearest lists that a search looks at / those that calibration found enough."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_Microseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]


class Costs(_Value):
    """Cost model of one query on one thread, fitted by timing an index on the machine that built it.

    Example:
        >>> exact = {"scan_us": 8, "scan_row_us": 0.05, "range_row_us": 0.03}
        >>> index = {"index_us": 10, "list_us": 0.5, "id_us": 0.004, "match_us": 0.05}
        >>> costs = Costs(processor="any", **exact, **index)
        >>> costs.scan(1000), costs.scan(1000, is_range=True), costs.index(lists=16, ids=4000, matches=400)
        (58.0, 38.0, 54.0)
    """

    processor: str = Field(description="name of the processor that was timed")
    scan_us: _Microseconds = Field(description="exact: each query")
    scan_row_us: _Microseconds = Field(description="exact: each matching item")
    range_row_us: _Microseconds = Field(description="exact: each matching item of a long range of rows")
    index_us: _Microseconds = Field(description="index: each query")
    list_us: _Microseconds = Field(description="index: each list")
    id_us: _Microseconds = Field(description="index: each item of the lists, which is checked")
    match_us: _Microseconds = Field(description="index: each matching item of the lists, which is compared")

    def scan(self, count: int, *, is_range: bool = False) -> float:
        """Microseconds of comparing with all matches; `is_range`: they are a long range of rows."""
        return self.scan_us + (self.range_row_us if is_range else self.scan_row_us) * count

    def index(self, *, lists: float, ids: float, matches: float) -> float:
        """Microseconds of scanning inverted lists under a filter."""
        return self.index_us + self.list_us * lists + self.id_us * ids + self.match_us * matches

    def lists(self, *, ids: NDArray[np.int64], matches: NDArray[np.int64]) -> NDArray[np.float64]:
        """(L,) microseconds of scanning each list, by how many items it has, and how many match."""
        each: NDArray[np.float64] = self.list_us + self.id_us * ids + self.match_us * matches
        return each


class RecallStep(_Value):
    """What filters of one selectivity need for the recall target; means are of filters that are independent
    of the query."""

    selectivity: float = Field(gt=0, le=1, description="matching items / all items")
    margin: float = Field(
        ge=0,
        description="a list is scanned if its centroid is at most so much less similar than the k-th item",
    )
    rare_margin: float | None = Field(
        None, ge=0, description="where matches are rare near the query; null: nothing is promised"
    )
    probes: int = Field(gt=0, description="nearest lists among which those that are scanned were found")
    lists: float = Field(ge=0, description="lists that are scanned, mean")
    ids_share: _Share = Field(description="items in these lists / all items")
    matches_share: _Share = Field(description="matching items in these lists / all matching items")


class RecallCell(_Value):
    """Recall of held-out queries under filters of one selectivity and correlation."""

    selectivity: float = Field(gt=0, le=1)
    correlation: Correlation
    by_index: _Share = Field(description="queries whose lists were enough; the others are compared exactly")
    recall: _Share = Field(description="of all these queries")
    low: _Share = Field(description="95 % Wilson interval of the recall")
    high: _Share
    num_queries: int = Field(gt=0)


class Recall(_Value):
    """Share of the k most similar matching items that are answered, and how that is known.

    Unless it is exact, it is that of queries like the items: those that it was measured on are items.
    """

    value: _Share
    basis: Literal["exact", "calibrated", "built"] = Field(
        description="exact; calibrated: on held-out queries under filters; built: measured once without a "
        "filter, at build"
    )
    low: _Share | None = Field(None, description="95 % interval; null: exact, or not known")
    high: _Share | None = None
    num_queries: int | None = Field(None, description="held-out queries it was measured on; null: exact")
    least_similarity: float | None = Field(
        None,
        description="of these to their nearest item: a less similar query is unlike them; null: not known",
    )

    def __str__(self) -> str:
        if self.basis == "exact":
            return "1, exact"
        interval = "" if self.low is None else f", interval {self.low:.3f} to {self.high:.3f}"
        word = "calibrated" if self.basis == "calibrated" else "measured at build"
        number = "" if self.num_queries is None else f"{self.num_queries} "
        return f"{self.value:.3f}, {word} on {number}queries like the items{interval}"


EXACT = Recall(value=1.0, basis="exact")


class Probes(_Value):
    """The lists that a query is expected to need, where matches are as frequent near it as anywhere."""

    looked_at: int
    lists: float
    ids_share: float
    matches_share: float
    recall: Recall


def depths_of(
    ids: NDArray[np.int64], matches: NDArray[np.int64], within: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    """(Q,) how many items are as near to each query as its k-th matching item, by its nearest lists.

    Those of the lists before the one with the k-th match, and this one's share; infinite: these lists have
    fewer than k matches.

    Args:
        ids: (Q, P) items in each query's nearest lists.
        matches: (Q, P) matching ones among them.
        within: (Q, P) the sums of matches up to each list.
        k: how many.
    """
    queries, last = np.arange(len(ids)), (within >= k).argmax(axis=1)
    size, in_last, found = ids[queries, last], matches[queries, last], within[queries, last]
    before = ids.cumsum(axis=1)[queries, last] - size
    depths = before + size * (k - found + in_last) / np.maximum(in_last, 1)
    return np.where(found >= k, depths, np.inf)


class RecallTable(_Value):
    """Which lists to scan under a filter so that recall@k reaches the target.

    A query first scans its nearest lists, until they have some times k matches. Then it scans each list whose
    centroid is at most a margin less similar to it than its k-th item so far. The margin is read by *depth*,
    how many items of the whole index lie nearer to a query than its k-th match: about k / selectivity. The 10
    nearest of 1 % of the items and the 100 nearest of 10 % lie equally deep. Each query's depth is counted in
    its own nearest lists. Where it is far more than expected, the filter excludes what is near the query:
    then another margin holds, or nothing is promised.
    """

    target: float = Field(gt=0, le=1)
    k: int = Field(gt=0)
    num_lists: int = Field(gt=0)
    candidates: int = Field(gt=0, description="items found per answer, then compared in full; 1: none")
    rare: float = Field(
        ge=1, description="matches are rare near a query whose depth is more than so many times the expected"
    )
    steps: tuple[RecallStep, ...] = Field(description="by falling selectivity; probes do not fall")
    cells: tuple[RecallCell, ...] = Field(description="recall measured with these margins")

    def probes_for(self, count: int, rows: int, k: int) -> Probes | None:
        """The lists that a query is expected to need for k of `count` matches among `rows` items.

        Returns:
            With the lowest recall of the cells of the nearest selectivities, of any correlation; None: no
            selectivity was measured that is as deep.
        """
        if not 0 < count <= rows or not self.steps:
            return None
        depth = max(k, self.k) * rows / count
        if depth > self._deepest:
            return None
        probes = math.exp(self._at(depth, [math.log(step.probes) for step in self.steps]))
        return Probes(
            looked_at=min(math.ceil(_LOOKED_AT * probes * (1 - 1e-12)), self.num_lists),
            lists=self._at(depth, [step.lists for step in self.steps]),
            ids_share=self._at(depth, [step.ids_share for step in self.steps]),
            matches_share=self._at(depth, [step.matches_share for step in self.steps]),
            recall=self._recall(self.k / depth),
        )

    def margins_at(self, depth: float) -> tuple[float, float]:
        """The margin, and the one where matches are rare near the query; NaN: nothing is promised there."""
        rare_margins = [math.nan if step.rare_margin is None else step.rare_margin for step in self.steps]
        return self._at(depth, [step.margin for step in self.steps]), self._at(depth, rare_margins)

    def margins_for(
        self, depths: NDArray[np.float64], expected: float, margins: tuple[float, float]
    ) -> NDArray[np.float64]:
        """(Q,) the margin of each query; NaN: nothing is promised.

        Args:
            depths: (Q,) of the queries' first max(k, `self.k`) matches.
            expected: depth, where matches are as frequent near a query as anywhere.
            margins: `margins_at` the expected depth.
        """
        of_queries = np.where(depths <= self.rare * expected, *margins)
        return np.where(depths <= self._deepest, of_queries, np.nan)

    @cached_property
    def _deepest(self) -> float:
        return self.k / self.steps[-1].selectivity * (1 + 1e-9)

    def _at(self, depth: float, values: list[float]) -> float:
        """Of the steps' values, interpolated by the logarithm of the depth."""
        return float(np.interp(math.log(depth), self._log_depths, values))

    @cached_property
    def _log_depths(self) -> NDArray[np.float64]:
        return np.log([self.k / step.selectivity for step in self.steps])

    def _recall(self, selectivity: float) -> Recall:
        shares = sorted({cell.selectivity for cell in self.cells})
        below = [share for share in shares if share <= selectivity * (1 + 1e-9)][-1:]
        above = [share for share in shares if share >= selectivity * (1 - 1e-9)][:1]
        near = [cell for cell in self.cells if cell.selectivity in {*below, *above}]
        worst = min(near, key=lambda cell: (cell.low, cell.recall))
        return Recall(
            value=worst.recall,
            basis="calibrated",
            low=worst.low,
            high=worst.high,
            num_queries=worst.num_queries,
        )


Kind = Literal["nothing", "exact", "index_filtered", "index", "cascade"]


class Stage(_Value):
    """One stage of a search: what it looked at, and what that cost."""

    name: str
    budget: int = Field(ge=0, description="rows that it was given to compare, at most")
    recall: float | None = Field(None, description="of what it hands on, where that was measured")
    mate_recall: float | None = Field(
        None, description="labelled queries with a mate among what it hands on, where that was measured"
    )
    cpu_us: _Microseconds = Field(description="processor time of a query, mean of those searched together")

    def __str__(self) -> str:
        recall = "" if self.recall is None else f", recall {self.recall:.3f}"
        mates = "" if self.mate_recall is None else f", mate-recall {self.mate_recall:.3f}"
        return f"{self.budget} rows, {self.cpu_us:.0f} us{recall}{mates}"


class Plan(_Value):
    """How a search is executed, why, what it costs by the model, and the recall with its basis."""

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

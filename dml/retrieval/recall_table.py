"""Which inverted lists to scan under a filter: count of matches and k in, lists and their recall out."""

import math
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Correlation = Literal["random", "inside", "outside"]
"""How matching items lie to the query: independent of it; near it, as its own region; far from it."""
_LOOKED_AT = 2.0
"""Nearest lists that a search looks at / those that calibration found enough."""
_Share = Annotated[float, Field(ge=0, le=1)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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

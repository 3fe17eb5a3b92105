"""Coarse first, fine later: a query in, candidates of small codes, then the most similar of them in full."""

import math
import time

import numpy as np
from numpy.typing import NDArray

from dml.reports import FirstStageChoice
from dml.retrieval.first_stage import FirstStage, Vectors, compared_in_full
from dml.retrieval.plan import Plan, Recall, Stage
from dml.retrieval.ties import Neighbors
from dml.retrieval.tune import K

_LARGEST_SHARE = 0.5
"""Of the rows as candidates; with more, comparing with all of them is as cheap."""


class Cascade:
    """The first stage of an index and its vectors in full; can be shared between threads.

    Args:
        first_stage: of the same rows as `vectors`.
        vectors: in full.
        choice: what was measured when it was built; with a chosen one.
    """

    def __init__(self, first_stage: FirstStage, vectors: Vectors, choice: FirstStageChoice) -> None:
        assert choice.chosen is not None
        self._first_stage, self._vectors = first_stage, vectors
        self._chosen, self._choice = choice.chosen, choice

    def shortlist(self, k: int) -> int:
        """Candidates for k answers: as many per answer as recall@10 was measured with."""
        return max(self._chosen.shortlist, math.ceil(self._chosen.shortlist * k / K))

    def suits(self, k: int) -> bool:
        """Whether few enough candidates are needed, of the rows."""
        return self.shortlist(k) <= _LARGEST_SHARE * self._vectors.rows

    def search(self, queries: NDArray[np.float32], k: int, plan: Plan) -> tuple[Neighbors, Plan]:
        """Find candidates and compare them in full.

        Args:
            queries: (Q, D) float32, unit length.
            k: answers wanted.
            plan: of a search without a filter.

        Returns:
            (Q, k) similarities and rows, -infinity and -1 where there are too few; and the plan with the
            stages' budgets, recall and times.
        """
        shortlist, rows = self.shortlist(k), self._vectors.rows
        start = time.thread_time()
        candidates = self._first_stage.candidates(queries, shortlist)
        middle = time.thread_time()
        neighbors = compared_in_full(self._vectors, queries, k, candidates)
        end = time.thread_time()
        us_per_query = 1e6 / max(len(queries), 1)
        recall = self._chosen.recall
        stages = (
            Stage(name=self._chosen.kind, budget=rows, recall=recall, cpu_us=us_per_query * (middle - start)),
            Stage(name="in full", budget=shortlist, recall=recall, cpu_us=us_per_query * (end - middle)),
        )
        update = {
            "kind": "cascade",
            "stages": stages,
            "reason": f"{plan.reason}, and {self._chosen.kind} was the cheapest first stage at build",
            "recall": Recall(value=recall, basis="built", num_queries=self._choice.num_queries),
        }
        return neighbors, plan.model_copy(update=update)

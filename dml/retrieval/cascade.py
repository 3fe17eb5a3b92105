"""Coarse first, fine later: a query in, candidates of small codes, then the most similar of them in full."""

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dml.reports import FirstStageChoice
from dml.retrieval.first_stage import FirstStage, compared_in_full
from dml.retrieval.held_out import K
from dml.retrieval.plan import Plan, Stage
from dml.retrieval.recall_table import Recall
from dml.retrieval.ties import Neighbors
from dml.retrieval.vectors import Vectors

IN_FULL = "in full"
_LARGEST_SHARE = 0.5
"""Of the rows as candidates; with more, comparing with all of them is as cheap."""


class Cascade:
    """The first stage of an index and its vectors in full; can be shared between threads.

    Args:
        first_stage: of the same rows as `vectors`.
        vectors: in full.
        choice: what was measured when it was built; with a chosen one.
        mate_recalls: of its stages, where that was measured.
        least_similarity: of the queries that recall was measured on to their nearest item; None: not known.
    """

    def __init__(
        self,
        first_stage: FirstStage,
        vectors: Vectors,
        choice: FirstStageChoice,
        mate_recalls: Mapping[str, float] | None = None,
        least_similarity: float | None = None,
    ) -> None:
        assert choice.chosen is not None
        self._first_stage, self._vectors = first_stage, vectors
        self._chosen = choice.chosen
        self._mate_recalls = mate_recalls or {}
        self._recall = Recall(
            value=choice.chosen.recall,
            basis="built",
            num_queries=choice.num_queries,
            least_similarity=least_similarity,
        )

    @property
    def name(self) -> str:
        """Of the first stage."""
        return self._chosen.kind

    def candidates(self, queries: NDArray[np.float32], k: int) -> list[NDArray[np.int64]]:
        """For each query (D,) the rows that the first stage hands on, ascending, for k answers."""
        return self._first_stage.candidates(queries, self.shortlist(k))

    def compared(
        self, queries: NDArray[np.float32], k: int, candidates: Sequence[NDArray[np.int64]]
    ) -> Neighbors:
        """(Q, k) similarities and rows of the most similar candidates, by their vectors in full."""
        return compared_in_full(self._vectors, queries, k, candidates)

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
        candidates = self.candidates(queries, k)
        middle = time.thread_time()
        neighbors = self.compared(queries, k, candidates)
        end = time.thread_time()
        us_per_query = 1e6 / max(len(queries), 1)
        recall = self._chosen.recall
        stages = tuple(
            Stage(
                name=name,
                budget=budget,
                recall=recall,
                mate_recall=self._mate_recalls.get(name),
                cpu_us=us_per_query * taken,
            )
            for name, budget, taken in (
                (self._chosen.kind, rows, middle - start),
                (IN_FULL, shortlist, end - middle),
            )
        )
        update = {
            "kind": "cascade",
            "stages": stages,
            "reason": f"{plan.reason}, and {self._chosen.kind} was the cheapest first stage at build",
            "recall": self._recall,
        }
        return neighbors, plan.model_copy(update=update)

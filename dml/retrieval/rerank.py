"""The last stage of a cascade: a search's candidates in, the same in a better order out.

Query expansion searches again with the query and its first answers together. K-reciprocal re-ranking compares
whom the query and a candidate have as neighbours. A function of yours may do anything, such as comparing two
images by a network. An answer's similarity stays the cosine of query and item; its rank is the re-ranker's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidSetting
from dml.retrieval.answer import NO_MORE, Answer, SearchResult
from dml.retrieval.filters import Where
from dml.retrieval.plan import Plan, Stage
from dml.retrieval.rerankers import CANDIDATES, NAMES, NUM_EXPANDING, expanded, k_reciprocal_distances
from dml.retrieval.search import Index

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Candidates:
    """What a search has found for one query."""

    answers: Sequence[Answer]
    """The most similar first."""
    vectors: NDArray[np.float32]
    """(n, D) of the answers, unit length."""


Rerank = Literal["query-expansion", "k-reciprocal"] | Callable[[Vector, Candidates], Any]
"""A name, or a function of a query (D,) and its candidates, with a score (n,) for each; larger is better."""


def reranked_search(
    index: Index,
    vectors: NDArray[np.float32],
    k: int,
    *,
    by: Rerank,
    embedder: str,
    where: Where = None,
    exclude_ids: Sequence[str] | None = None,
    candidates: int = CANDIDATES,
) -> SearchResult:
    """Search, and put what was found into a better order.

    Args:
        index: open.
        vectors: (Q, D) float32, unit length.
        k: answers wanted.
        by: the re-ranker.
        embedder: fingerprint of what embedded the queries.
        where: a filter, as of `Index.search`; what does not satisfy it is no candidate either.
        exclude_ids: (Q,) for each query an item that is not an answer.
        candidates: that are re-ranked, or k if that is more.

    Returns:
        At most k answers per query in the re-ranker's order; the plan has the stages.

    Raises:
        InvalidSetting: there is no such re-ranker, or a function's scores are not one finite number for each
            candidate.
    """
    if not callable(by) and by not in NAMES:
        raise InvalidSetting(
            f"rerank must be {' or '.join(NAMES)}, or a function of a query and its candidates; got {by!r}."
        )
    wanted = NUM_EXPANDING if by == "query-expansion" else max(candidates, k)
    start = time.thread_time()
    found = index.search(vectors, wanted, embedder=embedder, where=where, exclude_ids=exclude_ids)
    middle = time.thread_time()
    pools = [Candidates(of_query, _vectors_of(index, of_query)) for of_query in found.answers]
    if by == "query-expansion":
        queries = np.stack([expanded(q, pool.vectors) for q, pool in zip(vectors, pools, strict=True)])
        again = index.search(queries, k, embedder=embedder, where=where, exclude_ids=exclude_ids)
        answers = [
            [
                answer._replace(similarity=float(similarity))
                for answer, similarity in zip(few, _vectors_of(index, few) @ query, strict=True)
            ]
            for query, few in zip(vectors, again.answers, strict=True)
        ]
    else:
        answers = [_in_order(query, pool, by)[:k] for query, pool in zip(vectors, pools, strict=True)]
    each = 1e6 / max(len(vectors), 1)
    name = by if isinstance(by, str) else getattr(by, "__name__", type(by).__name__)
    searched, last = each * (middle - start), each * (time.thread_time() - middle)
    fewest = min(map(len, answers), default=k)
    return SearchResult(answers, _plan(index, found.plan, k, fewest, wanted, name, searched, last))


def _vectors_of(index: Index, answers: Sequence[Answer]) -> NDArray[np.float32]:
    if not answers:
        return np.empty((0, index.ref.embeddings.dim), dtype=np.float32)
    return index.vectors_of([answer.id for answer in answers])


def _in_order(query: Vector, pool: Candidates, by: Rerank) -> list[Answer]:
    if not pool.answers:
        return []
    if callable(by):
        scores = np.asarray(by(query, pool), dtype=np.float64)
        if scores.shape != (len(pool.answers),) or not np.isfinite(scores).all():
            raise InvalidSetting(
                f"A re-ranker must return a finite score for each of its {len(pool.answers)} candidates; got "
                f"{'some that are not finite' if scores.shape == (len(pool.answers),) else scores.shape}."
            )
    else:
        scores = -k_reciprocal_distances(query, pool.vectors)
    return [pool.answers[position] for position in np.argsort(-scores, kind="stable")]


def _plan(
    index: Index, plan: Plan, k: int, fewest: int, wanted: int, name: str, searched_us: float, last_us: float
) -> Plan:
    """The plan of the search, with the stages' budgets and times."""
    first = plan.factory if plan.kind == "index" else plan.kind.replace("_", " ")
    stages = plan.stages or (
        Stage(
            name=first,
            budget=plan.count,
            recall=plan.recall.value,
            mate_recall=None if plan.filtered else index.mate_recall(first),
            cpu_us=searched_us,
        ),
    )
    measured = None if plan.filtered else index.mate_recall(name)
    stages = (*stages, Stage(name=name, budget=wanted, mate_recall=measured, cpu_us=last_us))
    notes = tuple(note for note in plan.notes if not note.endswith(NO_MORE))
    plan = plan.model_copy(update={"k": k, "stages": stages, "notes": notes})
    if plan.kind != "cascade":
        plan = plan.noting(f"re-ranked by {name}")
    return plan.noting(f"{fewest} of {k} answers: {NO_MORE}") if fewest < k else plan

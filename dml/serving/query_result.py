"""The result of one query, as `Searcher` and `EngineSearcher` return it."""

from collections.abc import Sequence
from dataclasses import dataclass

from dml.refs import IndexRef
from dml.reports import IdentityHit, SearchHit, SearchPlan, SearchReport
from dml.retrieval.answer import Answer
from dml.retrieval.plan import Plan


@dataclass(frozen=True)
class QueryResult:
    """The search result of one query: answers and plan."""

    index: IndexRef
    answers: Sequence[Answer]
    plan: Plan | str
    """Text: another engine searched, or answers are grouped."""
    identities: Sequence[IdentityHit] | None = None
    """Instead of answers, where these are grouped."""

    def report(self, *, picture: str | None = None) -> SearchReport:
        """The result as a report for users.

        Args:
            picture: path of the picture of query and answers; None: no picture was drawn.
        """
        return SearchReport(
            index=str(self.index),
            model=self.index.model,
            embedder=self.index.embeddings.embedder.version,
            plan=str(self.plan),
            execution=(
                SearchPlan.model_validate(self.plan.model_dump()) if isinstance(self.plan, Plan) else None
            ),
            answers=[
                SearchHit(
                    id=answer.id,
                    label=answer.label,
                    similarity=round(answer.similarity, 6),
                    attributes=answer.attributes,
                )
                for answer in self.answers
            ],
            identities=None if self.identities is None else list(self.identities),
            picture=picture,
        )

"""What a search answers: the items of each query, and the plan by which they were found."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from dml.data.schema import BASE_COLUMNS
from dml.retrieval.plan import Plan

NO_MORE = "no more match"
"""The reason in a plan's notes where a query has fewer answers than were wanted."""


class Answer(NamedTuple):  # made ten times a query; a frozen dataclass takes four times as long
    """One item of a search result."""

    id: str
    similarity: float
    """Cosine of query and item, [-1, 1]."""
    label: str | None
    """None: the items have no labels."""
    split: str | None
    """None: the items have no splits."""
    attributes: dict[str, Any]
    position: int
    """Row of the item among the indexed items."""


@dataclass(frozen=True)
class SearchResult:
    """The answers of each query by descending similarity, and how the search was executed."""

    answers: list[list[Answer]]
    plan: Plan


def answer_of(similarity: float, item: dict[str, Any]) -> Answer:
    """An item, by its columns, as an answer of this similarity."""
    attributes = {k: v for k, v in item.items() if k not in BASE_COLUMNS and k != "position"}
    return Answer(item["id"], similarity, item.get("label"), item.get("split"), attributes, item["position"])

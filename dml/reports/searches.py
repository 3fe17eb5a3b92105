"""Results of searches: items or identities, and how they were found."""

from typing import Literal

from pydantic import Field

from dml.reports.faces import FaceBox
from dml.reports.result import Result


class SearchHit(Result):
    """One item among the answers of a search."""

    id: str
    label: str | None = Field(description="null: the items have no labels")
    similarity: float = Field(description="cosine of query and item, [-1, 1]")
    attributes: dict[str, str | int | float | bool | None] = Field(description="null: it has no value")


class SearchRecall(Result):
    """Share of the k most similar matching items that are answered, and how that is known."""

    value: float
    basis: Literal["exact", "calibrated", "built"] = Field(
        description="exact; calibrated: on held-out queries under filters; built: at build, without a filter"
    )
    low: float | None = Field(description="of its 95 % interval; null: exact, or not measured")
    high: float | None
    num_queries: int | None = Field(description="held-out queries it was measured on: items of the index")
    least_similarity: float | None = Field(
        description="of these to their nearest item: a less similar query is unlike them; null: not known"
    )


class SearchStage(Result):
    """One stage of a search: what it looked at, and what that cost."""

    name: str
    budget: int = Field(description="rows that it was given to compare, at most")
    recall: float | None = Field(description="of what it hands on; null: not measured")
    mate_recall: float | None = Field(
        None,
        description="labelled queries with a mate among what it hands on for ten answers, measured at build; "
        "null: not measured",
    )
    cpu_us: float = Field(description="processor time of a query, mean of those searched together")


class SearchPlan(Result):
    """How a search was executed, why, and what it costs by the cost model that was fitted at build."""

    kind: Literal["nothing", "exact", "index_filtered", "index", "cascade"] = Field(
        description="nothing: no item matches; exact: compared with every match; index_filtered: the nearest "
        "lists, without what does not match; index: as built, without a filter; cascade: the candidates of "
        "small codes, compared in full"
    )
    factory: str = Field(description="the index's Faiss factory")
    count: int = Field(description="items that match the filter; all without one")
    rows: int = Field(description="items of the index")
    k: int = Field(description="answers wanted, at most the matches")
    filtered: bool
    probes: int | None = Field(description="lists that a query is expected to need; null: none")
    looked_at: int | None = Field(description="its nearest lists, from which these are taken; null: none")
    scan_us: float | None = Field(
        description="CPU microseconds of comparing with every match; null: not timed"
    )
    index_us: float | None = Field(
        description="of the index under this filter; null: not possible or not timed"
    )
    reason: str
    recall: SearchRecall
    timed_elsewhere: str | None = Field(
        description="the processor on which the costs were timed, where it is another than this one"
    )
    stages: list[SearchStage] = Field(description="of a cascade, in order, as it was executed")
    notes: list[str] = Field(description="what happened while it was executed")


class ImageHit(Result):
    """An image of an identity among the answers."""

    id: str
    similarity: float = Field(description="cosine of query and image, [-1, 1]")
    attributes: dict[str, str | int | float | bool | None] = Field(description="null: it has no value")


class IdentityHit(Result):
    """An identity among the answers of a search, which are grouped by it."""

    identity: str = Field(description="the label; of items without labels the id")
    similarity: float = Field(description="of its most similar image, or the mean over its images")
    images: list[ImageHit] = Field(description="the most similar image, or all its images")


class SearchReport(Result):
    """The answers to one query, and the query plan."""

    index: str = Field(description="NAME@VERSION")
    model: str = Field(description="the registered version NAME/VERSION that embedded it; empty: none")
    embedder: str = Field(description="version of what embedded items and query")
    plan: str = Field(description="how the query was executed, and why there are fewer than k answers")
    execution: SearchPlan | None = Field(
        description="the same in full: costs, reason, recall with its basis; null: another engine searched"
    )
    answers: list[SearchHit] = Field(description="the most similar first")
    identities: list[IdentityHit] | None = Field(
        None, description="the most similar first, instead of answers; null: they are not grouped"
    )
    picture: str | None = Field(None, description="path of the picture of query and answers; null: none")


class SearchedFace(FaceBox, SearchReport):
    """The answers to one face of a picture."""


class SearchedFaces(Result):
    """The answers to each face of a picture."""

    index: str = Field(description="NAME@VERSION")
    faces: list[SearchedFace] = Field(description="the largest first; empty: the picture shows none")

"""Searches: queries in, the most similar items or identities of each out."""

from typing import Literal

from pydantic import ConfigDict, Field

from dml.reports import Box, SearchPlan
from dml.serving.app.messages.base import MAX_BATCH, Answered, Cosine, Message, Rate, StoredScalar
from dml.serving.app.messages.queries import FILTER, Faces, Filters, Queries

MAX_K = 1_000
Grouping = Literal["best", "mean", "all"]
Status = Literal["known", "unknown"]


class SearchRequest(Message):
    """Find the most similar items of each query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"queries": [{"id": "shirts/17.jpg"}], "k": 5},
                {"queries": [{"vector": [0.6, 0.8]}], "k": 3, "filter": "region = 'east'", "explain": True},
                {"queries": [{"image": {"base64": "iVBORw0KGgo="}}], "group_by_identity": "best"},
            ]
        }
    )

    queries: Queries = Field(description=f"at most {MAX_BATCH}; they are searched together")
    k: int = Field(10, ge=1, le=MAX_K, strict=True, description="answers of each query")
    filter: Filters = FILTER
    group_by_identity: Grouping | None = Field(
        None,
        description="identities instead of items: best (by the most similar image), mean (of all), all",
    )
    rerank: Literal["query-expansion", "k-reciprocal"] | None = Field(
        None, description="put the most similar 100 in another order"
    )
    threshold: Cosine | None = Field(
        None, description="similarity from which an answer is accepted; null: that of `fpir`"
    )
    fpir: Rate | None = Field(
        None,
        description="false-positive identification rate for which the calibrated threshold is taken; null: "
        "that of the calibration, where there is one",
    )
    explain: bool = Field(False, description="say how the search was planned, with costs and recall")
    faces: Faces = "main"


HAS_PICTURE = Field(description="whether `/pictures/{id}` has an image of it; it has none of a vector")


class Hit(Message):
    """An item that answers a query."""

    id: str
    label: str | None = Field(description="null: the item has none")
    similarity: float = Field(description="cosine of query and item, [-1, 1]")
    attributes: dict[str, StoredScalar] = Field(description="null: it has no value")
    accepted: bool | None = Field(description="whether it reaches the threshold; null: there is no threshold")
    has_picture: bool = HAS_PICTURE


class IdentityImage(Message):
    """An image of an identity that answers a query, or a vector of it."""

    id: str
    similarity: float = Field(description="cosine of query and image, [-1, 1]")
    attributes: dict[str, StoredScalar] = Field(description="null: it has no value")
    has_picture: bool = HAS_PICTURE


class IdentityAnswer(Message):
    """An identity that answers a query."""

    identity: str = Field(description="the label; of items without labels the id")
    similarity: float = Field(description="of its most similar image, or the mean over its images")
    images: list[IdentityImage] = Field(description="the most similar image, or all its images")


class Threshold(Message):
    """From which similarity an answer is accepted."""

    similarity: float
    fpir: float | None = Field(description="false-positive identification rate; null: you gave the threshold")


class QueryAnswer(Message):
    """The answers of one query, the most similar first."""

    answers: list[Hit] = Field(description="empty where identities were asked for")
    identities: list[IdentityAnswer] | None = Field(description="null: they were not asked for")
    status: Status | None = Field(
        description="known: an answer reaches the threshold; null: there is no threshold"
    )


class SearchedFace(QueryAnswer):
    """The answers of one face of a picture."""

    box: Box
    score: float = Field(description="of the detector, [0, 1]")


class StageTimes(Message):
    """Milliseconds of each stage, waiting for its turn included."""

    decode: float
    encode: float
    search: float


class SearchResponse(Answered):
    """The answers of a search, in the order of the queries."""

    results: list[QueryAnswer] = Field(description="empty where all faces were asked for")
    faces: list[list[SearchedFace]] | None = Field(
        None,
        description="those of each query, the largest first; an empty list: it shows none. null: they were "
        "not asked for",
    )
    threshold: Threshold | None = Field(description="null: none was given, and the index was not calibrated")
    no_threshold: str = Field("", description="why there is none; empty: there is, or none was asked for")
    plan: str = Field(description="how the search was executed, and why there are fewer than k answers")
    execution: SearchPlan | None = Field(None, description="null: `explain` was not asked for")
    milliseconds: StageTimes

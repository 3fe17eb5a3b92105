"""Requests and answers of the service, as JSON; `client` and the OpenAPI page are made of them.

An image travels as base64 in JSON. A query is an image, a vector, or the id of an item.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from dml.errors import InvalidSetting
from dml.names import MAX_ID_LENGTH
from dml.reports import Box, IdentityHit, SearchPlan, TriedScope

MAX_FILTER_CHARACTERS = 8_192
MAX_BATCH = 256
MAX_K = 1_000

Scalar: TypeAlias = str | int | float | bool | None
Text = Annotated[str, Field(max_length=MAX_ID_LENGTH)]
Component = Annotated[float, Field(ge=-1.001, le=1.001, allow_inf_nan=False)]
Cosine = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
WhereText = Annotated[str, Field(max_length=MAX_FILTER_CHARACTERS)]
Where: TypeAlias = WhereText | dict[str, Any]
Grouping = Literal["best", "mean", "all"]
Quality = Literal["off", "standard", "strict"]
Status = Literal["known", "unknown"]


class Message(BaseModel):
    """Base of all: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Image(Message):
    """An image file: JPEG, PNG, GIF, BMP, TIFF, WEBP, AVIF, JPEG2000 or PPM."""

    base64: str = Field(
        min_length=4, description="the file's bytes, in base64", json_schema_extra={"format": "byte"}
    )

    @classmethod
    def of(cls, content: bytes) -> "Image":
        """An image file's bytes as a message."""
        return cls(base64=base64.b64encode(content).decode())

    def content(self) -> bytes:
        """The file's bytes; raises InvalidSetting for what is not base64."""
        try:
            return base64.b64decode(self.base64, validate=True)
        except (binascii.Error, ValueError) as error:  # the latter of what is not ASCII
            raise InvalidSetting(
                f"base64 must be a file's bytes in base64; got {len(self.base64)} characters that are not: "
                f"{error}. Encode the whole file, in the standard alphabet with padding."
            ) from error


class ImageQuery(Message):
    """Search with an image."""

    image: Image


class VectorQuery(Message):
    """Search with a vector that the index's own embedder has made."""

    vector: list[Component] = Field(
        min_length=1, max_length=16_384, description="(D,) of unit length, by the index's embedder"
    )


class IdQuery(Message):
    """Search with an item of the index, which is then no answer."""

    id: Text = Field(min_length=1, description="of an item")


class IdentityQuery(Message):
    """All images of an identity."""

    identity: Text = Field(min_length=1, description="the label; of items without labels the id")


_KINDS = ("image", "vector", "id", "identity")


def _kind(value: Any) -> str | None:
    """Which query it is, by its only key."""
    if isinstance(value, Mapping):
        present = [kind for kind in _KINDS if kind in value]
        return present[0] if present else None
    return next((kind for kind in _KINDS if hasattr(value, kind)), None)


_Choices = Discriminator(
    _kind,
    custom_error_type="query",
    custom_error_message='must be {{"image": {{"base64": ...}}}}, {{"vector": [...]}} or {{"id": ...}}',
)
Query = Annotated[
    Annotated[ImageQuery, Tag("image")]
    | Annotated[VectorQuery, Tag("vector")]
    | Annotated[IdQuery, Tag("id")],
    _Choices,
]
Other = Annotated[
    Annotated[ImageQuery, Tag("image")]
    | Annotated[VectorQuery, Tag("vector")]
    | Annotated[IdQuery, Tag("id")]
    | Annotated[IdentityQuery, Tag("identity")],
    _Choices,
]
"""A query, or an identity: then the most similar of its images counts."""

_Filter = Field(
    default=None,
    description="which items may answer: text such as \"region = 'east'\", a filter as JSON, or a list of "
    "these, which must all hold; see docs/filters.md",
)
_Filters: TypeAlias = Where | Annotated[list[Where], Field(max_length=32)] | None
Faces = Annotated[
    Literal["main", "all"],
    Field(
        description="all: each face of a picture by itself, where the index's model detects faces; "
        f"what is asked must be images, with {MAX_BATCH} faces together at most",
    ),
]
_Queries = Annotated[list[Query], Field(min_length=1, max_length=MAX_BATCH)]


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

    queries: _Queries = Field(description=f"at most {MAX_BATCH}; they are searched together")
    k: int = Field(10, ge=1, le=MAX_K, strict=True, description="answers of each query")
    filter: _Filters = _Filter
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


class Answered(Message):
    """What each answer says of where it comes from: one index version and one embedder, never two."""

    index: str = Field(description="NAME@VERSION")
    revision: int = Field(
        description="of the gallery: what was enrolled and forgotten up to it is in the answer"
    )
    model: str = Field(description="the registered version NAME/VERSION that embedded the items; empty: none")
    embedder: str = Field(description="fingerprint of what embedded items and queries, hex SHA-256")
    dim: int = Field(description="length of an embedding")


class Hit(Message):
    """An item that answers a query."""

    id: str
    label: str | None = Field(description="null: the item has none")
    similarity: float = Field(description="cosine of query and item, [-1, 1]")
    attributes: dict[str, Scalar] = Field(description="null: it has no value")
    accepted: bool | None = Field(description="whether it reaches the threshold; null: there is no threshold")


class Threshold(Message):
    """From which similarity an answer is accepted."""

    similarity: float
    fpir: float | None = Field(description="false-positive identification rate; null: you gave the threshold")


class QueryAnswer(Message):
    """The answers of one query, the most similar first."""

    answers: list[Hit] = Field(description="empty where identities were asked for")
    identities: list[IdentityHit] | None = Field(description="null: they were not asked for")
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


class VerifyRequest(Message):
    """Decide whether two images show the same identity, or one image an enrolled identity."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"probe": {"image": {"base64": "iVBORw0KGgo="}}, "other": {"identity": "ann"}}]
        }
    )

    probe: Query
    other: Other
    fmr: Rate | None = Field(None, description="false-match rate; null: 0.001")
    threshold: Cosine | None = Field(None, description="similarity instead of a calibrated one")
    faces: Faces = "main"


class VerifiedFace(Message):
    """Whether one face of the probe is the other's."""

    box: Box
    score: float = Field(description="of the detector, [0, 1]")
    same: bool
    similarity: float


class VerifyResponse(Answered):
    """Whether they are the same."""

    same: bool
    similarity: float = Field(description="cosine; of the most similar image of an identity")
    threshold: float
    fmr: float | None = Field(description="false-match rate of the threshold; null: it was given")
    identity: str | None = Field(description="null: the other is an image")
    images: int = Field(description="with which the probe was compared")
    faces: list[VerifiedFace] | None = Field(
        None,
        description="those of the probe, the largest first; the rest of the answer is of the most similar "
        "one. null: they were not asked for",
    )


class IdentifyRequest(Message):
    """Find out who or what each query shows; "unknown" is an answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "queries": [{"image": {"base64": "iVBORw0KGgo="}}],
                    "scopes": ["region = 'east'", ""],
                    "hint": {"region": "east"},
                }
            ]
        }
    )

    queries: _Queries = Field(description=f"at most {MAX_BATCH}, each identified by itself")
    scopes: list[Where] = Field(
        [""],
        min_length=1,
        max_length=16,
        description="filters, tried in order; empty text: the whole gallery",
    )
    hint: dict[Text, Text | int | float | bool] = Field(
        {}, max_length=32, description="attribute to value, known of the queries; resolves `needs_hint`"
    )
    fpir: Rate | None = Field(None, description="over all scopes; null: that of the calibration")
    threshold: Cosine | None = Field(
        None, description="similarity for every scope, instead of calibrated ones"
    )
    never_ask: list[Text] = Field(
        [], max_length=32, description="attributes that the answer must not ask for"
    )
    margin: float | None = Field(
        None, ge=0, le=2, description="an identity further below the best one is no candidate; null: none is"
    )
    faces: Faces = "main"


class Identified(Message):
    """Who one query shows."""

    status: Literal["identified", "unknown", "needs_hint", "undecided"]
    identity: str | None = Field(description="the label; of items without labels the id")
    similarity: float | None = Field(description="of its most similar image")
    id: str | None = Field(description="of that image")
    scope: str | None = Field(description="the filter of the scope that decided; null: none did")
    ask: str | None = Field(description="the attribute to ask for; never a value of it")
    tried: list[TriedScope] = Field(description="in order")


class IdentifiedFace(Identified):
    """Who one face of a picture is."""

    box: Box
    score: float = Field(description="of the detector, [0, 1]")


class IdentifyResponse(Answered):
    """Who each query shows, in their order."""

    results: list[Identified] = Field(description="empty where all faces were asked for")
    faces: list[list[IdentifiedFace]] | None = Field(
        None,
        description="those of each query, the largest first; an empty list: it shows none. null: they were "
        "not asked for",
    )


class EnrolRequest(Message):
    """Add images or vectors of one identity; they are found once this is answered."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "identity": "ann",
                    "images": [{"base64": "iVBORw0KGgo="}],
                    "attributes": {"region": "east"},
                    "quality": "standard",
                }
            ]
        }
    )

    identity: Text = Field(min_length=1, description="the label")
    images: list[Image] = Field([], max_length=MAX_BATCH)
    vectors: list[Annotated[list[Component], Field(min_length=1, max_length=16_384)]] = Field(
        [], max_length=MAX_BATCH, description="(D,) each, of unit length, by the index's embedder"
    )
    attributes: dict[Text, Scalar] = Field({}, max_length=256, description="of all of them")
    ids: list[Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]] | None = Field(
        None, max_length=2 * MAX_BATCH, description="one for each; null: made of the identity and the content"
    )
    quality: Quality = Field("off", description="what an image must satisfy to be enrolled")


class EnrolResponse(Answered):
    """What was enrolled: durable, and found by every search from now on."""

    identity: str
    ids: list[str] = Field(description="of the items, in the order of images, then vectors")


class UpdateRequest(Message):
    """Change an item that was enrolled or indexed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"attributes": {"region": "west"}}]})

    attributes: dict[Text, Scalar] | None = Field(
        None, max_length=256, description="these change; the others stay. null: none does"
    )
    label: Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)] | None = Field(
        None, description="null: it stays"
    )


class ChangeResponse(Answered):
    """What was changed or forgotten."""

    ids: list[str] = Field(description="of the items")


class Item(Answered):
    """An item of a gallery."""

    id: str
    label: str | None
    attributes: dict[str, Scalar]
    enrolled: bool = Field(description="whether it was enrolled or changed after the index was built")
    picture: str | None = Field(description="path of its image in this service; null: it has none")


class ColumnValue(Message):
    """A value of a column, and how many items have it."""

    value: str | int | float | bool
    count: int


class Column(Message):
    """A column of the items, for a form of filters."""

    name: str
    type: Literal["text", "integer", "number", "boolean", "time", "location"]
    missing: int = Field(description="items without a value")
    distinct: int = Field(description="different values, the missing one apart")
    values: list[ColumnValue] = Field(description="the most frequent ones, the most frequent first")
    low: float | str | None = Field(description="of numbers and times; null: there is none")
    high: float | str | None


class IndexSummary(Answered):
    """An index that is served."""

    name: str
    version: str
    rows: int = Field(description="items of the index, enrolled ones apart")
    enrolled: int = Field(description="items since the index was built")
    forgotten: int = Field(description="items since the index was built")
    factory: str = Field(description="the Faiss factory")
    recall: float = Field(description="recall@10 against exact search, measured when it was built")
    source: str = Field(description="dataset or vectors that were embedded, NAME@VERSION")
    takes_images: bool = Field(description="false: its model is not in the store; search by vector or id")
    detects_faces: bool = Field(description="whether every face of a picture can be identified")
    has_pictures: bool = Field(description="whether its items have images")
    fpir: float | None = Field(description="that its thresholds were calibrated for; null: not calibrated")


class IndexList(Message):
    """The indexes that are served."""

    indexes: list[IndexSummary]
    unavailable: dict[str, str] = Field({}, description="index to why it cannot be opened")


class IndexVersion(Message):
    """A published version of an index."""

    version: str
    created: str = Field(description="ISO 8601, UTC")
    current: bool
    model: str
    source: str
    rows: int
    recall: float


class ScopeThreshold(Message):
    """A calibrated scope and its threshold for the rate of the calibration."""

    scope: str = Field(description="a filter; empty: the whole gallery")
    identities: int
    threshold: float | None = Field(description="null: none is promised")
    refused: str = Field("", description="why none is")


class IndexDetail(IndexSummary):
    """An index with what a form of filters needs."""

    columns: list[Column]
    versions: list[IndexVersion] = Field(description="the newest first")
    thresholds: list[ScopeThreshold]


class Model(Message):
    """A model that embeds queries."""

    embedder: str = Field(description="fingerprint, hex SHA-256")
    name: str = Field(description="as its index names it: NAME/VERSION, or what it is")
    dim: int
    source: str = Field(description="where it comes from, such as timm:resnet50; empty: trained here")
    license: str = Field(description="of its weights; empty: not said")
    takes_images: bool = Field(description="whether it is in the store")
    indexes: list[str] = Field(description="NAME@VERSION of those it embedded")


class ModelList(Message):
    """The models of the indexes that are served; each is loaded once."""

    models: list[Model]


class Health(Message):
    """Whether the process answers."""

    status: Literal["ok"] = "ok"
    version: str = Field(description="of this program")


class Readiness(Message):
    """Whether requests can be answered: all indexes were opened."""

    status: Literal["ready"] = "ready"
    indexes: list[str] = Field(description="NAME@VERSION")


class Problem(Message):
    """What is wrong: what must hold, what came, what to do."""

    code: str = Field(description="what kind of error, such as not_found; stable")
    must: str = Field(description="what must hold")
    got: str = Field(description="what came instead; empty: `must` says it")
    do: str = Field(description="what to do; empty: `must` says it")
    request_id: str = Field(description="also in the header X-Request-Id and in the log")
    write_committed: bool | None = Field(
        None,
        description="true: what you wrote is durable although this is an error; do not write it again",
        exclude_if=lambda value: value is None,
    )


class ErrorResponse(Message):
    """Every error has this form."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "code": "not_found",
                        "must": "An index must exist",
                        "got": "there is no shopp",
                        "do": "Did you mean 'shop'?",
                        "request_id": "0f8fad5bd9cb",
                    }
                }
            ]
        }
    )

    error: Problem

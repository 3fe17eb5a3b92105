"""What is served: indexes with columns, versions and thresholds; models."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dml.serving.app.messages.base import Answered, Message, finite_or_null

_Bound = Annotated[float | str | None, BeforeValidator(finite_or_null)]


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
    low: _Bound = Field(description="of numbers and times; null: there is none, or it is infinite")
    high: _Bound


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

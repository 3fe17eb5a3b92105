"""What messages are made of: a base class, texts and numbers with bounds, and where an answer is from."""

import math
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from dml.names import MAX_ID_LENGTH

MAX_FILTER_CHARACTERS = 8_192
MAX_BATCH = 256


def _without_nul(text: str) -> str:
    """No id, label or name of a file can hold it, so nothing would be found by it."""
    if "\0" in text:
        raise ValueError("must be a text without NUL")
    return text


def finite_or_null(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinity are null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Scalar: TypeAlias = str | int | float | bool | None
StoredScalar = Annotated[Scalar, BeforeValidator(finite_or_null)]
"""A value of an item, as JSON can hold it."""
WithoutNul = AfterValidator(_without_nul)
Text = Annotated[str, Field(max_length=MAX_ID_LENGTH), WithoutNul]
Name = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH), WithoutNul]
Component = Annotated[float, Field(ge=-1.001, le=1.001, allow_inf_nan=False)]
Cosine = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
WhereText = Annotated[str, Field(max_length=MAX_FILTER_CHARACTERS)]
Where: TypeAlias = WhereText | dict[str, Any]


class Message(BaseModel):
    """Base of all: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Answered(Message):
    """What each answer says of where it comes from: one index version and one embedder, never two."""

    index: str = Field(description="NAME@VERSION")
    revision: int = Field(
        description="of the gallery: what was enrolled and forgotten up to it is in the answer"
    )
    model: str = Field(description="the registered version NAME/VERSION that embedded the items; empty: none")
    embedder: str = Field(description="fingerprint of what embedded items and queries, hex SHA-256")
    dim: int = Field(description="length of an embedding")

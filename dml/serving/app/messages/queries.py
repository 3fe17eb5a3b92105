"""Queries: an image as base64, a vector, or the id of an item; filters, and which faces."""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from dml.errors import InvalidSetting
from dml.serving.app.messages.base import MAX_BATCH, Component, Message, Name, Where


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

    id: Name = Field(description="of an item")


class IdentityQuery(Message):
    """All images of an identity."""

    identity: Name = Field(description="the label; of items without labels the id")


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

FILTER = Field(
    default=None,
    description="which items may answer: text such as \"region = 'east'\", a filter as JSON, or a list of "
    "these, which must all hold; see docs/filters.md",
)
Filters: TypeAlias = Where | Annotated[list[Where], Field(max_length=32)] | None
Faces = Annotated[
    Literal["main", "all"],
    Field(
        description="all: each face of a picture by itself, where the index's model detects faces; "
        f"what is asked must be images, with {MAX_BATCH} faces together at most",
    ),
]
Queries = Annotated[list[Query], Field(min_length=1, max_length=MAX_BATCH)]

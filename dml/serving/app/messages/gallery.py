"""A gallery's items: enrolled, changed, forgotten, looked at."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from dml.serving.app.messages.base import (
    MAX_BATCH,
    Answered,
    Component,
    Message,
    Name,
    Scalar,
    StoredScalar,
    Text,
)
from dml.serving.app.messages.queries import Image

Quality = Literal["off", "standard", "strict"]


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

    identity: Name = Field(description="the label")
    images: list[Image] = Field([], max_length=MAX_BATCH)
    vectors: list[Annotated[list[Component], Field(min_length=1, max_length=16_384)]] = Field(
        [], max_length=MAX_BATCH, description="(D,) each, of unit length, by the index's embedder"
    )
    attributes: dict[Text, Scalar] = Field({}, max_length=256, description="of all of them")
    ids: list[Name] | None = Field(
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
    label: Name | None = Field(None, description="null: it stays")


class ChangeResponse(Answered):
    """What was changed or forgotten."""

    ids: list[str] = Field(description="of the items")


class Item(Answered):
    """An item of a gallery."""

    id: str
    label: str | None
    attributes: dict[str, StoredScalar]
    enrolled: bool = Field(description="whether it was enrolled or changed after the index was built")
    picture: str | None = Field(description="path of its image in this service; null: it has none")

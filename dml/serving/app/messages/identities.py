"""Verification and identification: are two the same, and who is it."""

from typing import Literal

from pydantic import ConfigDict, Field

from dml.reports import Box, TriedScope
from dml.serving.app.messages.base import MAX_BATCH, Answered, Cosine, Message, Rate, Text, Where
from dml.serving.app.messages.queries import Faces, Other, Queries, Query


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

    queries: Queries = Field(description=f"at most {MAX_BATCH}, each identified by itself")
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

"""Routes of identities: are two the same, and who is it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray

from dml.errors import InvalidFilter
from dml.faces import Region
from dml.reports import Identification
from dml.serving.app import messages
from dml.serving.app.opened import OpenIndex, require_calibration
from dml.serving.app.problems import Refused
from dml.serving.app.routing import ERRORS, LimitRate, Name, Reader, TheService
from dml.serving.app.service import answered
from dml.serving.app.where import checked_where

router = APIRouter(prefix="/v1/indexes/{name}", tags=["search"], responses=ERRORS)


@router.post("/verify")
async def verify(
    name: Name, body: messages.VerifyRequest, service: TheService, _: Reader
) -> messages.VerifyResponse:
    """Decide whether two images show the same identity, or one image an enrolled identity."""
    stages = service.stages()
    with service.indexes.hold(name) as opened:
        if body.threshold is None:
            require_calibration(opened)
        other = body.other
        queries: list[Any] = [body.probe]
        if not isinstance(other, messages.IdentityQuery):
            queries.append(other)
        first, *second = await service.vectors(opened, stages, queries)
        known = other.identity if isinstance(other, messages.IdentityQuery) else second[0]
        result = await service.search(
            opened,
            stages,
            lambda: opened.identifier.verify(
                first, known, embedder=opened.embedder, fmr=body.fmr, threshold=body.threshold
            ),
        )
        return messages.VerifyResponse(**answered(opened), **result.model_dump(exclude={"index"}))


@router.post("/identify")
async def identify(
    name: Name, body: messages.IdentifyRequest, service: TheService, _: Reader, limit_rate: LimitRate
) -> messages.IdentifyResponse:
    """Find out who each query shows, of those enrolled; "unknown" is an answer."""
    limit_rate(len(body.queries) * len(body.scopes) - 1)
    stages = service.stages()
    with service.indexes.hold(name) as opened:
        if body.threshold is None:
            require_calibration(opened)
        if body.faces == "all":
            faces = await service.faces(opened, stages, _images_of(body))
            limit_rate(max(sum(map(len, faces)) - len(faces), 0) * len(body.scopes))
            found = await service.search(opened, stages, lambda: _identify_faces(opened, body, faces))
            return messages.IdentifyResponse(**answered(opened), results=[], faces=found)
        vectors = await service.vectors(opened, stages, body.queries)
        results = await service.search(opened, stages, lambda: _identify(opened, body, vectors))
        return messages.IdentifyResponse(
            **answered(opened),
            results=[messages.Identified(**each.model_dump(exclude={"index"})) for each in results],
        )


def _images_of(body: messages.IdentifyRequest) -> list[messages.Image]:
    images = [query.image for query in body.queries if isinstance(query, messages.ImageQuery)]
    if len(images) < len(body.queries):
        others = len(body.queries) - len(images)
        raise Refused(
            422,
            "invalid_request",
            "Queries must be images where all faces are asked for",
            f"{others} of {len(body.queries)} are not",
            "Leave faces out.",
        )
    return images


def _identify_faces(
    opened: OpenIndex,
    body: messages.IdentifyRequest,
    faces: Sequence[Sequence[tuple[Region, NDArray[np.float32]]]],
) -> list[list[messages.IdentifiedFace]]:
    """In a thread."""
    answers = iter(_identify(opened, body, [vector for each in faces for _, vector in each]))
    return [[_face(region, next(answers)) for region, _ in each] for each in faces]


def _face(region: Region, answer: Identification) -> messages.IdentifiedFace:
    left, top, width, height = region.box
    box = messages.Box(left=left, top=top, width=width, height=height)
    return messages.IdentifiedFace(**answer.model_dump(exclude={"index"}), box=box, score=region.score)


def _identify(
    opened: OpenIndex, body: messages.IdentifyRequest, vectors: Sequence[NDArray[np.float32]]
) -> list[Identification]:
    """In a thread."""
    scopes: list[Any] = []
    for scope in body.scopes:
        several = checked_where(scope)
        if isinstance(scope, dict) and not scope:
            raise InvalidFilter('A scope must be a filter, or "" for the whole gallery; got {}. Write "".')
        scopes.append(several[0] if several else "")
    return [
        opened.identifier.identify(
            vector,
            embedder=opened.embedder,
            scopes=scopes,
            hint=body.hint,
            fpir=body.fpir,
            threshold=body.threshold,
            never_ask=body.never_ask,
            margin=math.inf if body.margin is None else body.margin,
        )
        for vector in vectors
    ]

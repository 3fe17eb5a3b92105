"""Routes of identities: are two the same, and who is it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray

from dml.errors import InvalidFilter
from dml.faces import NoFace
from dml.reports import Box, Identification, Verification
from dml.serving.app import messages
from dml.serving.app.faces import by_picture, find_faces, vectors_of
from dml.serving.app.opened import OpenIndex, require_calibration
from dml.serving.app.routing import ERRORS, LimitRate, Name, Reader, TheService
from dml.serving.app.service import answered
from dml.serving.app.where import checked_where

router = APIRouter(prefix="/v1/indexes/{name}", tags=["search"], responses=ERRORS)


@router.post("/verify")
async def verify(
    name: Name, body: messages.VerifyRequest, service: TheService, _: Reader, limit_rate: LimitRate
) -> messages.VerifyResponse:
    """Decide whether two images show the same identity, or one image an enrolled identity."""
    stages = service.stages()
    with service.indexes.hold(name) as opened:
        if body.threshold is None:
            require_calibration(opened)
        other = body.other
        is_all = body.faces == "all"
        queries: list[Any] = [] if is_all else [body.probe]
        if not isinstance(other, messages.IdentityQuery):
            queries.append(other)
        vectors = await service.vectors(opened, stages, queries)
        known = other.identity if isinstance(other, messages.IdentityQuery) else vectors.pop()
        faces = await find_faces(service, opened, stages, [body.probe], limit_rate) if is_all else []
        probes = vectors_of(faces) if is_all else vectors
        if not probes:
            raise NoFace(
                "A picture must show a face to be compared; in this one none is found. Take another."
            )
        results = await service.search(
            opened,
            stages,
            lambda: [
                opened.identifier.verify(
                    probe, known, embedder=opened.embedder, fmr=body.fmr, threshold=body.threshold
                )
                for probe in probes
            ],
        )
        best = max(results, key=lambda result: result.similarity)
        return messages.VerifyResponse(
            **answered(opened),
            **best.model_dump(exclude={"index"}),
            faces=by_picture(faces, results, _verified_face)[0] if is_all else None,
        )


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
            faces = await find_faces(
                service, opened, stages, body.queries, limit_rate, times=len(body.scopes)
            )
            found = await service.search(opened, stages, lambda: _identify(opened, body, vectors_of(faces)))
            return messages.IdentifyResponse(
                **answered(opened), results=[], faces=by_picture(faces, found, _identified_face)
            )
        vectors = await service.vectors(opened, stages, body.queries)
        results = await service.search(opened, stages, lambda: _identify(opened, body, vectors))
        return messages.IdentifyResponse(
            **answered(opened),
            results=[messages.Identified(**each.model_dump(exclude={"index"})) for each in results],
        )


def _verified_face(answer: Verification, box: Box, score: float) -> messages.VerifiedFace:
    return messages.VerifiedFace(box=box, score=score, same=answer.same, similarity=answer.similarity)


def _identified_face(answer: Identification, box: Box, score: float) -> messages.IdentifiedFace:
    return messages.IdentifiedFace(**answer.model_dump(exclude={"index"}), box=box, score=score)


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

"""Route of searches: images, vectors or ids in, the most similar items or identities out."""

from collections.abc import Collection, Sequence

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray

from dml.errors import InvalidSetting
from dml.reports import Box, IdentityHit, SearchPlan
from dml.retrieval.answer import Answer
from dml.retrieval.identities import search_identities
from dml.retrieval.plan import Plan
from dml.retrieval.rerank import reranked_search
from dml.serving.app import messages
from dml.serving.app.faces import Faces, by_picture, find_faces, vectors_of
from dml.serving.app.opened import OpenIndex, require_calibration
from dml.serving.app.recall import Sampled
from dml.serving.app.routing import ERRORS, LimitRate, Name, Reader, TheService
from dml.serving.app.service import Service, answered
from dml.serving.app.where import Wheres, checked_where

router = APIRouter(prefix="/v1/indexes/{name}", tags=["search"], responses=ERRORS)


@router.post("/search")
async def search(
    name: Name, body: messages.SearchRequest, service: TheService, _: Reader, limit_rate: LimitRate
) -> messages.SearchResponse:
    """Find the most similar items of each query, under a filter; or the most similar identities."""
    limit_rate(len(body.queries) - 1)
    where = checked_where(body.filter)
    stages = service.stages()
    with service.indexes.hold(name) as opened:
        faces: Faces | None = None
        if body.faces == "all":
            faces = await find_faces(service, opened, stages, body.queries, limit_rate)
            vectors = vectors_of(faces)
            excluded: list[str | None] = [None] * len(vectors)
        else:
            vectors = await service.vectors(opened, stages, body.queries)
            excluded = [query.id if isinstance(query, messages.IdQuery) else None for query in body.queries]
        found = await service.search(opened, stages, lambda: _search(opened, body, where, vectors, excluded))
        _sample(service, opened, body, where, vectors, excluded, found)
        return messages.SearchResponse(
            **answered(opened),
            results=found.results if faces is None else [],
            faces=None if faces is None else by_picture(faces, found.results, _searched_face),
            threshold=found.threshold,
            no_threshold=found.no_threshold,
            plan=found.plan,
            execution=found.execution,
            milliseconds=stages.milliseconds(),
        )


def _searched_face(answer: messages.QueryAnswer, box: Box, score: float) -> messages.SearchedFace:
    return messages.SearchedFace(**dict(answer), box=box, score=score)


def _sample(
    service: Service,
    opened: OpenIndex,
    body: messages.SearchRequest,
    where: Wheres,
    vectors: Sequence[NDArray[np.float32]],
    excluded: Sequence[str | None],
    found: "_Found",
) -> None:
    """Offer the queries whose recall can be measured: of an item as query, it is among the exact answers."""
    if body.rerank is not None or body.group_by_identity is not None:
        return
    for excluded_id, vector, answers in zip(excluded, vectors, found.hits, strict=True):
        if excluded_id is None:
            service.recall.offer(Sampled(opened, vector, body.k, where, answers))


class _Found:
    """What a search has found, for all queries."""

    results: list[messages.QueryAnswer]
    hits: list[list[Answer]]
    """Of each query; empty where identities were asked for."""
    threshold: messages.Threshold | None
    no_threshold: str
    plan: str
    execution: SearchPlan | None = None


def _search(
    opened: OpenIndex,
    body: messages.SearchRequest,
    where: Wheres,
    vectors: Sequence[NDArray[np.float32]],
    excluded: Sequence[str | None],
) -> _Found:
    """In a thread."""
    found = _Found()
    found.threshold, found.no_threshold = _threshold(opened, body, where)
    limit = None if found.threshold is None else found.threshold.similarity
    if body.group_by_identity is not None:
        if body.rerank is not None or body.explain:
            raise InvalidSetting(
                "group_by_identity goes without rerank and explain; got them too. Leave them out."
            )
        grouped = [
            search_identities(
                opened.index,
                vector,
                body.k,
                embedder=opened.embedder,
                where=where,
                grouping=body.group_by_identity,
                exclude_id=excluded_id,
            )
            for vector, excluded_id in zip(vectors, excluded, strict=True)
        ]
        found.hits = []
        found.plan = f"identities, by {body.group_by_identity}"
        ids = [image.id for hits in grouped for hit in hits for image in hit.images]
        pictured = opened.gallery.ids_with_picture(ids)
        found.results = [_of_identities(hits, limit, pictured) for hits in grouped]
        return found
    if not vectors:
        found.hits, found.results, found.plan = [], [], "nothing is searched: no face is found"
        return found
    found.hits, plan = _items(opened, body, where, np.stack(vectors), excluded)
    found.plan = str(plan)
    found.execution = SearchPlan.model_validate(plan.model_dump()) if body.explain else None
    pictured = _with_picture(opened, found.hits)
    found.results = [_of_items(answers, limit, pictured) for answers in found.hits]
    return found


def _items(
    opened: OpenIndex,
    body: messages.SearchRequest,
    where: Wheres,
    vectors: NDArray[np.float32],
    excluded: Sequence[str | None],
) -> tuple[list[list[Answer]], Plan]:
    """The answers of each query; items that are queries are searched for apart from the others."""
    answers: list[list[Answer]] = [[] for _ in vectors]
    plan = None
    for are_items in (False, True):
        numbers = [number for number, id_ in enumerate(excluded) if (id_ is not None) == are_items]
        if not numbers:
            continue
        ids = [id_ for id_ in excluded if id_ is not None] if are_items else None
        of_index = opened.index
        if body.rerank is None:
            result = of_index.search(
                vectors[numbers], body.k, where=where, embedder=opened.embedder, exclude_ids=ids
            )
        else:
            result = reranked_search(
                of_index,
                vectors[numbers],
                body.k,
                by=body.rerank,
                where=where,
                embedder=opened.embedder,
                exclude_ids=ids,
            )
        plan = result.plan
        for number, of_query in zip(numbers, result.answers, strict=True):
            answers[number] = of_query
    assert plan is not None
    return answers, plan


def _threshold(
    opened: OpenIndex, body: messages.SearchRequest, where: Wheres
) -> tuple[messages.Threshold | None, str]:
    """From which similarity an answer is accepted; or None and why."""
    if body.threshold is not None and body.fpir is not None:
        raise InvalidSetting("A search must have a threshold or an fpir; got both. Leave one of them out.")
    if body.threshold is not None:
        return messages.Threshold(similarity=body.threshold, fpir=None), ""
    if opened.thresholds is None:
        if body.fpir is not None:
            require_calibration(opened)
        return None, f"index {opened.ref} was not calibrated"
    fpir = opened.thresholds.fpir if body.fpir is None else body.fpir
    try:
        similarity = opened.identifier.threshold(where or "", fpir=fpir)
    except InvalidSetting as error:
        if body.fpir is not None:
            raise
        return None, str(error)
    if similarity is None:
        return None, "no item satisfies the filter"
    return messages.Threshold(similarity=similarity, fpir=fpir), ""


def _with_picture(opened: OpenIndex, hits: Sequence[Sequence[Answer]]) -> set[str]:
    """Those of the answers of which there is a picture; only of what was enrolled the log is asked."""
    enrolled = [answer.id for answers in hits for answer in answers if answer.position < 0]
    found = opened.gallery.ids_with_picture(enrolled) if enrolled else set()
    if opened.has_pictures:
        found |= {answer.id for answers in hits for answer in answers if answer.position >= 0}
    return found


def _of_items(
    answers: Sequence[Answer], limit: float | None, pictured: Collection[str]
) -> messages.QueryAnswer:
    hits = [
        messages.Hit(
            id=answer.id,
            label=answer.label,
            similarity=round(answer.similarity, 6),
            attributes=answer.attributes,
            accepted=None if limit is None else answer.similarity >= limit,
            has_picture=answer.id in pictured,
        )
        for answer in answers
    ]
    best = max((answer.similarity for answer in answers), default=-2.0)
    return messages.QueryAnswer(answers=hits, identities=None, status=_status(best, limit))


def _of_identities(
    hits: Sequence[IdentityHit], limit: float | None, pictured: Collection[str]
) -> messages.QueryAnswer:
    best = max((hit.similarity for hit in hits), default=-2.0)
    identities = [
        messages.IdentityAnswer(
            identity=hit.identity,
            similarity=hit.similarity,
            images=[
                messages.IdentityImage(**dict(image), has_picture=image.id in pictured)
                for image in hit.images
            ],
        )
        for hit in hits
    ]
    return messages.QueryAnswer(answers=[], identities=identities, status=_status(best, limit))


def _status(best: float, limit: float | None) -> messages.Status | None:
    return None if limit is None else "known" if best >= limit else "unknown"

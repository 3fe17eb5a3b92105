"""Routes for those who run the service: is it alive, is it ready, how is it doing."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import dml
from dml.serving.app import messages
from dml.serving.app.problems import Refused
from dml.serving.app.routing import ERRORS, Reader, TheService

router = APIRouter(tags=["operation"], responses=ERRORS)


@router.get("/healthz")
async def healthz() -> messages.Health:
    """Whether the process answers; needs no key."""
    return messages.Health(version=dml.__version__)


@router.get("/readyz")
async def readyz(service: TheService) -> messages.Readiness:
    """Whether all indexes were opened; needs no key. 503 until then."""
    if not service.is_ready:
        raise Refused(
            503,
            "not_ready",
            "Indexes must be open to be searched",
            "they are being opened",
            "Wait.",
            retry_after=1,
        )
    return messages.Readiness(indexes=[str(opened.ref) for opened in service.indexes.opened.values()])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: TheService, _: Reader) -> Response:
    """Metrics in Prometheus' format."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

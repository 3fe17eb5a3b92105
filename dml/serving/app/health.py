"""Routes for those who run the service: is it alive, is it ready, how is it doing."""

import math

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import dml
from dml.errors import without_password
from dml.serving.app import messages
from dml.serving.app.keys import Caller
from dml.serving.app.problems import Refused
from dml.serving.app.routing import ERRORS, TheService, WholeStoreReader

router = APIRouter(tags=["operation"], responses=ERRORS)


@router.get("/healthz")
async def healthz() -> messages.Health:
    """Whether the process answers; needs no key."""
    return messages.Health(version=dml.__version__)


@router.get("/readyz")
async def readyz(request: Request, service: TheService) -> messages.Readiness:
    """Whether there are indexes to search, all of them opened; needs no key. 503 until then.

    It names those that the caller may read: where keys are needed, none without one.
    """
    caller: Caller | None = request.state.caller
    if not service.is_ready:
        raise Refused(
            503,
            "not_ready",
            "Indexes must be open to be searched",
            "they are being opened",
            "Wait.",
            retry_after=1,
        )
    if not service.indexes.opened:
        why = "; ".join(
            text if _may_read(caller, name) else "one cannot be opened, as the service's log says"
            for name, text in service.indexes.unavailable.items()
        )
        why = why or "it has none any more"
        seconds = math.ceil(service.settings.refresh_seconds)
        raise Refused(
            503,
            "not_ready",
            "A service must have an index that can be searched",
            without_password(why.replace(f"{service.settings.store}/", "")).rstrip("."),
            f"Publish one, or mend it: it is searched {seconds} s later.",
            retry_after=seconds,
        )
    return messages.Readiness(
        indexes=[
            str(opened.ref) for name, opened in service.indexes.opened.items() if _may_read(caller, name)
        ]
    )


def _may_read(caller: Caller | None, name: str) -> bool:
    return caller is not None and caller.may("read", name)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: TheService, _: WholeStoreReader) -> Response:
    """Metrics in Prometheus' format."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

"""The whole app: settings in, a FastAPI application out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

import dml
from dml.errors import DmlError
from dml.serving.app import browse, catalogue, gallery, health, identities, search
from dml.serving.app.guard import Guard
from dml.serving.app.keys import Keys
from dml.serving.app.problems import Refused, refusal_of, response_of
from dml.serving.app.service import Batched, Service
from dml.serving.app.settings import ServiceSettings
from dml.serving.app.telemetry import Tracing

_PAGE = Path(__file__).parent.parent / "page"


def create_app(
    settings: ServiceSettings, *, batched: Batched | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: of the service; `ServiceSettings(store=...)` is enough.
        batched: encodes single images by a function of many; None: micro-batches in this process. Ray Serve's
            `serve.batch(...)` is another.
        tracing: makes spans; None: for the collector of the settings, if there is one.

    Raises:
        InvalidSetting, CorruptArtifact: the file of keys cannot be used.

    Example:
        app = create_app(ServiceSettings(store="dml-store"))
        uvicorn.run(app, host="127.0.0.1", port=8000)
    """
    keys = None if settings.keys is None else Keys(settings.keys)
    service = Service(settings, keys=keys, batched=batched, tracing=tracing)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="dml",
        version=dml.__version__,
        summary="Search, verify, identify and enrol by image.",
        docs_url=None,  # it would fetch its page from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a path that is not described is 404, in the form of all errors
        lifespan=lifespan,
    )
    app.state.service = service
    for room in (search, identities, gallery, catalogue, browse, health):
        app.include_router(room.router)

    async def refuse(request: Request, error: Exception) -> Response:
        headers = error.headers if isinstance(error, HTTPException) else None
        refused = refusal_of(error, hide=settings.store)
        return response_of(refused, request.state.request_id, headers)

    for kind in (DmlError, Refused, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refuse)
    app.add_middleware(Guard, settings=settings, keys=keys, metrics=service.metrics, tracing=service.tracing)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    """A route for the files of the page. A mount at "/" would take every path, so none would be refused for
    its method."""
    files = {file.name: file for file in _PAGE.iterdir() if file.is_file()}

    async def page(request: Request) -> Response:
        file = files.get(request.path_params.get("file", "index.html"))
        if file is None:
            raise HTTPException(404)
        return FileResponse(file)

    app.add_route("/", page, methods=["GET"])
    app.add_route("/{file}", page, methods=["GET"])

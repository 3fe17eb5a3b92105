"""A small store with a published index, and clients of an app in this process."""

import base64
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from fastapi import FastAPI

from dml.config import IndexConfig
from dml.embedding.embed import embed
from dml.refs import DatasetRef, IndexRef
from dml.retrieval.build import build_index
from dml.retrieval.gallery import collect_changes, publish_index
from dml.serving.app.factory import create_app
from dml.serving.app.settings import ServiceSettings
from tests.embedding.parts import make_dataset, make_package, png

NAME = "shelves"


def publish(
    store: str, dataset: DatasetRef, *, seed: int = 1, dim: int = 16, factory: str = "Flat"
) -> IndexRef:
    """An index of a dataset, and of what was enrolled, by a model of its own, published."""
    table = embed(store, make_package(store, seed=seed, dim=dim), dataset)
    changes = collect_changes(store, NAME, table)
    ref = build_index(store, NAME, table, IndexConfig(factory=factory), changes=changes)
    publish_index(store, ref)
    return ref


def make_store(folder: Path, *, rows: int = 40) -> tuple[str, DatasetRef, IndexRef]:
    store = str(folder / "store")
    dataset = make_dataset(folder / "images", store, rows=rows)
    return store, dataset, publish(store, dataset)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app that was started and is ready."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            while (await client.get("/readyz")).status_code == 503:
                await anyio.sleep(0.01)
            yield client


def ask(settings: ServiceSettings, asking: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
    """What a coroutine returns that asks an app with these settings."""

    async def run() -> Any:
        async with running(create_app(settings)) as client:
            return await asking(client)

    return anyio.run(run)


def post(settings: ServiceSettings, path: str, body: Any) -> httpx.Response:
    """The answer to one request."""

    async def asking(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(path, json=body)

    answer: httpx.Response = ask(settings, asking)
    return answer


def image(seed: int) -> dict[str, Any]:
    """A query by a picture of noise; below 40 it is one of the store's."""
    return {"image": {"base64": base64.b64encode(png(seed)).decode()}}

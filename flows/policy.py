"""How stages run under Prefect, and that they cost nothing without it.

A flow's body calls `stage(function)(...)`. Inside a flow run that is a Prefect task with its own row in the
UI; outside (the command line without a Prefect server, a test, a notebook) it is the plain function.
"""

import base64
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.settings import get_current_settings

from dml.progress import Progress

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

logging.getLogger("dml").setLevel(logging.INFO)  # training's progress, also in a run's log

RETRY_DELAYS_S = [10.0, 60.0]
"""For stages that read and write remote stores and go on where they stopped; the others repeat nothing."""


def stage(function: Callable[P, R], *, heals: bool = False) -> Callable[P, R]:
    """A room's function as one step of a flow.

    Args:
        function: takes and returns refs and settings, never tensors or tables.
        heals: a retry can help, because it resumes; retried after `RETRY_DELAYS_S`.
    """
    if not is_orchestrated():
        return function
    name = function.__name__.replace("_", "-")
    delays = RETRY_DELAYS_S if heals else []
    wrapped: Callable[P, R] = task(
        name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(delays),
        retry_delay_seconds=delays,
        retry_condition_fn=_may_heal,
    )(function)
    return wrapped


def _may_heal(_task: Any, _run: Any, state: Any) -> bool:
    """A user's mistake stays one however often it is tried."""
    from dml.errors import DmlError

    return not isinstance(state.result(raise_on_failure=False), DmlError)


def is_orchestrated() -> bool:
    return FlowRunContext.get() is not None


def run(flow: Flow[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a flow as a (sub)flow run where a Prefect server is configured, else as the function it wraps."""
    if is_orchestrated() or get_current_settings().api.url is not None:
        return flow(*args, **kwargs)
    return flow.fn(*args, **kwargs)


def side_by_side(function: Callable[[T], R], items: Sequence[T], most: int) -> list[R]:
    """A function's results of every item in order, up to `most` items at a time.

    After an error no further item is begun; those under way are finished, and the first error is raised.
    """
    if most == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(most) as pool:
        # A thread sees the flow run it works for only in a copy of its context.
        futures = [pool.submit(copy_context().run, function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def say(message: str) -> None:
    """One line for whoever watches the flow."""
    if is_orchestrated():
        get_run_logger().info(message)
    else:
        logging.getLogger("dml.flows").info(message)


def show_table(key: str, rows: Sequence[Mapping[str, Any]], description: str = "") -> None:
    if is_orchestrated():
        create_table_artifact(table=[dict(row) for row in rows], key=key, description=description)


def show_link(key: str, link: str, text: str) -> None:
    if is_orchestrated():
        create_link_artifact(link=link, link_text=text, key=key)


def show_text(key: str, markdown: str) -> None:
    if is_orchestrated():
        create_markdown_artifact(markdown=markdown, key=key)


def show_picture(key: str, png: bytes, description: str) -> None:
    """The picture travels inside the artefact, so that the UI needs no access to the store."""
    if is_orchestrated():
        url = "data:image/png;base64," + base64.b64encode(png).decode()
        create_image_artifact(image_url=url, key=key, description=description)


def announce(event: str, resource: str, payload: Mapping[str, Any]) -> None:
    """Emit an event that automations can act on, such as `dml.model.promoted`."""
    if is_orchestrated():
        emit_event(event, resource={"prefect.resource.id": resource}, payload=dict(payload))


def tell(what: str, units: str = "fragments") -> Callable[[int, int], None]:
    """A progress callback (units done, units in all) whose lines the flow's watcher sees."""
    return Progress(what, units, say)


class Stopwatch:
    """Seconds of each named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 2)

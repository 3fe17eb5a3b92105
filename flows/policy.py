"""Stages, subflows, artifacts and log lines of flows, with or without a Prefect server.

A flow's body calls `stage(function)(...)`. Inside a flow run this is a Prefect task with its own row in the
UI. Outside (the command line without a Prefect server, a test, a notebook) it is the plain function.
"""

import base64
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from threading import Event, Thread
from typing import Annotated, Any, ParamSpec, TypeVar
from uuid import UUID

from prefect import Flow, get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext, get_settings_context
from prefect.events import emit_event
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)
from pydantic import BeforeValidator, WithJsonSchema

from dml.deadline import call_within
from dml.errors import DmlError, ForgottenMeanwhile, Unreachable, without_password
from dml.progress import Progress

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _as_text(name: object) -> object:
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


Name = Annotated[
    str, BeforeValidator(_as_text), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]})
]
"""Name of a dataset, model or index; the number that Prefect parses from `-p dataset=2024` becomes text."""


class _OneLineForUserErrors(logging.Filter):
    """Log filter: users' errors take one line in a run's log; only internal errors have a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, DmlError):
            message = record.getMessage()
            record.msg, record.args = message if str(error) in message else f"{message}: {error}", ()
            record.exc_info = record.exc_text = None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_OneLineForUserErrors())
logging.getLogger("dml").setLevel(logging.INFO)  # training progress, also in a run's log

ANSWER_TIMEOUT_S, _CHECK_TIMEOUT_S = 5.0, 8.0  # one request, and the whole check
RETRY_DELAYS_S = [10.0, 60.0]
_MOST_ATTEMPTS = 3
"""For stages that use remote stores and resume where they stopped; other stages are not retried."""


def stage(function: Callable[P, R], *, retryable: bool = False) -> Callable[P, R]:
    """A function of `dml` as one step of a flow.

    Args:
        function: takes and returns refs and settings, never tensors or tables.
        retryable: retry after `RETRY_DELAYS_S`, for a function that resumes where it stopped.
    """
    if not is_orchestrated():
        return function
    name = function.__name__.replace("_", "-")
    delays = RETRY_DELAYS_S if retryable else []
    wrapped: Callable[P, R] = task(
        name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(delays),
        retry_delay_seconds=delays,
        retry_condition_fn=_is_retryable,
    )(function)
    return wrapped


def _is_retryable(_task: Any, _run: Any, state: Any) -> bool:
    """A retry does not help with a user's error."""
    return not isinstance(state.result(raise_on_failure=False), DmlError)


def run_parameters() -> dict[str, Any]:
    """The parameters of the starting flow run, for the callable that names it."""
    context = FlowRunContext.get()
    return dict(context.parameters or {}) if context is not None else {}


def tag_with_names(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tag a starting run with its datasets, models and indexes, as `dataset:shop`; an `on_running` hook."""
    given = flow_run.parameters
    parts = [part for key in ("config", "source") if isinstance(part := given.get(key), dict)]
    # What makes a dataset is configured by its name; what a flow itself has as a name is a model or an index.
    datasets = [given.get("dataset"), *(part["name"] for part in parts if "source" in part)]
    datasets += [name for part in parts for name in part.get("datasets", [])]
    named = [given.get("name"), *(given.get("names") or [])]
    makes_model = flow.name in ("train-flow", "import-model-flow")
    models = [given.get("model"), *(named if makes_model else [])]
    about = {"dataset": datasets, "model": models, "index": [] if makes_model else named}
    tags = {
        f"{kind}:{re.split('[@/]', str(name))[0]}" for kind, names in about.items() for name in names if name
    }
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted({*flow_run.tags, *tags}))


def is_orchestrated() -> bool:
    return FlowRunContext.get() is not None


def run(flow: Flow[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a flow as a (sub)flow run if a Prefect server is configured, else as a plain function."""
    if is_orchestrated():
        return flow(*args, **kwargs)
    if prefect_url() is None:
        return flow.fn(*args, **kwargs)
    require_answer()
    return flow(*args, **kwargs)


def prefect_url() -> str | None:
    """The API URL of the Prefect server configured by a variable, a profile or a settings file; or None."""
    return get_current_settings().api.url


def require_answer(stack: str | None = None) -> None:
    """Require a Prefect server that answers.

    Args:
        stack: API URL of a running `dml up`; None for the configured server.

    Raises:
        Unreachable: it does not answer in `ANSWER_TIMEOUT_S`; the message says where its URL comes from.
    """
    url = stack or str(prefect_url())
    limits = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: ANSWER_TIMEOUT_S}
    with temporary_settings({PREFECT_API_URL: url, **limits}), get_client(sync_client=True) as client:
        try:
            problem = call_within(_CHECK_TIMEOUT_S, lambda: _connection_problem(client))
        except TimeoutError as error:
            problem = str(error)
    if problem is None:
        return
    origin, remedy = (
        (_where_prefect_url_is_set(), f"Start it (`dml up`), or {_how_to_unset()} to go on without Prefect.")
        if stack is None
        else (
            "the `dml up` of this store",
            "Wait until `dml up` has printed its addresses, or stop it and start it again.",
        )
    )
    raise Unreachable(
        f"The Prefect server at {without_password(url)} must answer; "
        f"{without_password(problem).rstrip('.')}. Its address comes from {origin}. {remedy}"
    )


def _connection_problem(client: SyncPrefectClient) -> str | None:
    """Why the server does not answer as a Prefect server; None if it does."""
    problem = client.api_healthcheck()
    if problem is not None:
        return f"{type(problem).__name__}: {problem}"
    try:
        client.read_flows(limit=1)  # other servers have a page /health too
    except Exception as error:  # any response of another server
        first = (str(error).strip().splitlines() or [""])[0]
        return f"another server answers ({type(error).__name__}: {first}); Prefect's API ends in /api"
    return None


def _profile_with_url() -> str | None:
    """The active Prefect profile's name, if it sets the API URL."""
    if os.environ.get("PREFECT_API_URL"):
        return None
    profile = get_settings_context().profile
    return profile.name if PREFECT_API_URL in profile.settings else None


def _where_prefect_url_is_set() -> str:
    if os.environ.get("PREFECT_API_URL"):
        return "the variable PREFECT_API_URL"
    profile = _profile_with_url()
    return f"Prefect's profile {profile!r}" if profile else "a settings file of Prefect's in this folder"


def _how_to_unset() -> str:
    if os.environ.get("PREFECT_API_URL"):
        return "`unset PREFECT_API_URL`"
    if _profile_with_url():
        return "`prefect config unset PREFECT_API_URL`"
    return "remove it"


def map_concurrently(function: Callable[[T], R], items: Sequence[T], concurrency: int) -> list[R]:
    """Map a function over items in order, with up to `concurrency` items at a time.

    After an error no further item is started; running items are finished, and the first error is raised.
    """
    if concurrency == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(concurrency) as pool:
        # A thread needs a copy of the context to see its flow run.
        futures = [pool.submit(copy_context().run, function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def begin_again(
    attempt: Callable[[], R],
    current: Callable[[], object] = lambda: None,
    *,
    prepare: Callable[[], object] = lambda: None,
) -> R:
    """Call a function that publishes what it made; again, where items were forgotten while it worked.

    An erasure takes versions away that others read, and refuses what they made of them. It ends, and what is
    left can be read.

    Args:
        attempt: publishes nothing where it fails, so that it may be called again: three times at most.
        current: what is published and forgotten; that it is another than before means that somebody else did
            that.
        prepare: called before each attempt; may itself change what is published and forgotten.

    Raises:
        DmlError: of the last call; or of one during which nothing was forgotten or replaced.
    """
    for attempts_left in range(_MOST_ATTEMPTS - 1, -1, -1):
        prepare()
        before = current()
        try:
            return attempt()
        except DmlError as error:
            if not attempts_left or not (isinstance(error, ForgottenMeanwhile) or current() != before):
                raise
            say(f"another command forgot items meanwhile, so it begins again: {error}")
    raise AssertionError


def say(message: str) -> None:
    """Log one line for the user: in the run's log, or in `dml.flows`."""
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
    """Show a picture; it is embedded in the artifact, so that the UI needs no access to the store."""
    if is_orchestrated():
        create_image_artifact(image_url=_url_of(png), key=key, description=description)


def _url_of(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


@contextmanager
def live_picture(
    key: str, draw: Callable[[], tuple[bytes, str] | None], *, first_s: float = 20.0, most_s: float = 600.0
) -> Iterator[None]:
    """A picture of a flow run that is drawn again while the body runs, and once after it.

    It is one artefact, replaced where it has changed. The pauses grow by half each, since a run of days is
    looked at less often than one of minutes. A picture that cannot be drawn is said, and ends nothing.

    Args:
        key: the artefact's name.
        draw: gives a PNG file's bytes and what it shows; None: there is nothing to see yet.
        first_s: seconds before the first.
        most_s: seconds between two at most.
    """
    if not is_orchestrated():
        yield
        return
    ended, shown = Event(), _LivePicture(key)

    def draw_again() -> None:
        pause = first_s
        while not ended.wait(pause):
            shown.update(draw)
            pause = min(pause * 1.5, most_s)

    thread = Thread(target=copy_context().run, args=(draw_again,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        shown.update(draw)


class _LivePicture:
    """An image artefact that is made once, then replaced."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._id: UUID | None = None
        self._last: tuple[bytes, str] | None = None

    def update(self, draw: Callable[[], tuple[bytes, str] | None]) -> None:
        try:
            picture = draw()
            if picture is None or picture == self._last:
                return
            png, description = picture
            if self._id is None:
                made = create_image_artifact(image_url=_url_of(png), key=self._key, description=description)
                assert isinstance(made, UUID), "in a thread of its own it is no coroutine"
                self._id = made
            else:
                with get_client(sync_client=True) as client:
                    client.update_artifact(
                        self._id, ArtifactUpdate(data=_url_of(png), description=description)
                    )
            self._last = picture
        except Exception as error:  # training goes on without its picture
            say(f"{self._key} cannot be shown at present: {type(error).__name__}: {error}")


def announce(event: str, resource: str, payload: Mapping[str, Any]) -> None:
    """Emit an event for Prefect automations, such as `dml.model.promoted`."""
    if is_orchestrated():
        emit_event(event, resource={"prefect.resource.id": resource}, payload=dict(payload))


def progress_logger(what: str, units: str = "fragments") -> Callable[[int, int], None]:
    """A progress callback (units done, total units) that logs lines with `say`."""
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

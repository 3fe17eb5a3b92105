"""The process: settings and an address in, a service until it is told to end.

uvicorn waits for ever for a request's headers; a connection that sends half of them is closed here.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOL_SOCKET, socket
from typing import Any
from uuid import uuid4

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from dml import storage
from dml.errors import DmlError, InvalidSetting, MissingArtifact
from dml.retrieval.index import find_index, published_names
from dml.serving.app.factory import create_app
from dml.serving.app.guard import LINGER_S, access
from dml.serving.app.problems import Refused, problem_of
from dml.serving.app.settings import (
    LOOPBACK_NAMES,
    ServiceSettings,
    is_loopback,
    require_keys_beyond_loopback,
)

_MOST_HEAD_BYTES = 64 << 10
_KEEP_ALIVE_S = 15
_GRACE_S = 0.5
_WORKER_STARTS_S = 120
"""It imports torch before it can say that it is alive, and is killed if it has not said so by then."""
_PING_S = 0.5
_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class _Config(uvicorn.Config):
    """uvicorn's, with the service's limits."""

    def __init__(self, settings: ServiceSettings, **options: Any) -> None:
        super().__init__(partial(served_app, settings), factory=True, **options)
        self.limits = settings.limits


class _Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection whose headers must arrive in time, and be no more than `_MOST_HEAD_BYTES`."""

    _waiting: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _is_refused: bool = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        self._watch_head()

    def _watch_head(self) -> None:
        if self._is_refused:
            return
        if self._is_in_request():
            self._stop_waiting()
        elif self._head_bytes > _MOST_HEAD_BYTES:
            self._refuse(431, "long_head", f"Headers must be at most {_MOST_HEAD_BYTES} bytes", "more came")
        elif self._waiting is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "malformed", "A request must be well-formed HTTP", "this is not")

    def _is_in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self.config.limits.head_seconds, self._look_again)

    def _stop_waiting(self) -> None:
        self._head_bytes = 0
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _look_again(self) -> None:
        """A loop that is late runs its timers before it reads what has arrived meanwhile."""
        self._waiting = self.loop.call_later(_GRACE_S, self._give_up)

    def _give_up(self) -> None:
        seconds = self.config.limits.head_seconds
        if self._is_in_request():
            return
        if not self._head_bytes:
            self.transport.close()
            return
        self._refuse(408, "slow_head", f"Headers must arrive within {seconds:g} s", "they did not")

    def _refuse(self, status: int, code: str, must: str, got: str) -> None:
        """In the form of all errors; the app has not seen the request."""
        self._stop_waiting()
        body = problem_of(Refused(status, code, must, got, "Send it again."), uuid4().hex[:16]).encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        # What the client still sends is taken and dropped: a close now would reset the connection, and the
        # answer with it.
        self._is_refused = True
        self.loop.call_later(LINGER_S, self.transport.close)


class _Server(uvicorn.Server):
    """uvicorn's, which says when it has started."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


class _Workers(Multiprocess):
    """uvicorn's, which says when all have started, and does not wait for a process that has ended."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket], announce: Callable[[], None]) -> None:
        super().__init__(config, sockets)
        self._announce, self._is_announced = announce, False

    @property
    def have_failed(self) -> bool:
        """Whether one of them could not start."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)

    def keep_subprocess_alive(self) -> None:
        ready = [self._is_ready(process) for process in self.processes]
        if self.have_failed:
            self.should_exit.set()
        if self.signal_queue or self.should_exit.is_set() or False in ready:
            return
        if all(ready) and not self._is_announced:
            self._is_announced = True
            self._announce()
        super().keep_subprocess_alive()

    def _is_ready(self, process: Process) -> bool | None:
        """Whether it answers requests; None: it has ended, or says nothing for too long."""
        deadline = time.monotonic() + _WORKER_STARTS_S
        while process.exitcode is None and not self.signal_queue and time.monotonic() < deadline:
            if process.ping(_PING_S):
                while process.parent_conn.poll():
                    process.parent_conn.recv()  # late answers to former pings
                return process.is_ready(_PING_S)
        return None


def served_app(settings: ServiceSettings) -> FastAPI:
    """The app in a process of its own, whose log of requests is JSON lines on stderr."""
    if not access.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        access.addHandler(handler)
        access.setLevel(logging.INFO)
        access.propagate = False
    return create_app(settings)


def serve(
    settings: ServiceSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve until SIGINT or SIGTERM; requests that were begun are answered.

    Args:
        settings: of the service.
        host: address to listen on.
        port: 0: a free one.
        workers: processes, each with models and indexes of its own.
        announce: called with the address once it answers; with several workers, once they are started.

    Raises:
        InvalidSetting: others reach the address, and no key is needed.
        InvalidSetting: the address is taken, or none of this machine.
        MissingArtifact: the store has no index, or not one that was named.
        ModuleNotFoundError: what the encoder needs is not installed.
    """
    if settings.encoder == "onnx":
        import onnxruntime  # noqa: F401  (before a socket is opened: what is missing is said at once)
    require_keys_beyond_loopback(host, settings.keys)
    _require_indexes(settings)
    if settings.keys is None and not settings.hosts and is_loopback(host):
        settings = settings.model_copy(update={"hosts": LOOPBACK_NAMES})
    config = _Config(
        settings,
        host=host,
        port=port,
        workers=workers,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_worker_healthcheck=_WORKER_STARTS_S,
        timeout_graceful_shutdown=int(settings.limits.seconds),
    )
    bound = listening(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{bound.getsockname()[1]}"
    with suppress(KeyboardInterrupt):  # uvicorn sends it again once it has ended
        if workers == 1:
            server = _Server(config, lambda: announce(address))
            with suppress(SystemExit):  # uvicorn's way to say that it did not start
                server.run(sockets=[bound])
            has_started = server.started
        else:
            several = _Workers(config, [bound], lambda: announce(address))
            several.run()
            has_started = not several.have_failed
        if not has_started:
            raise MissingArtifact(
                f"A service must open an index to start; it could not, as the log says. Check the store "
                f"{settings.store}: dml verify."
            )


def listening(host: str, port: int) -> socket:
    """A socket that processes of this one can take over; uvicorn's own ends the process if there is none.

    Raises:
        InvalidSetting: the address is taken, or none of this machine.
    """
    bound = socket(AF_INET6 if ":" in host else AF_INET)
    bound.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, UnicodeError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise InvalidSetting(
            f"A service must listen on a free address of this machine; {host}, port {port}, is none: "
            f"{reason}. Choose another --host or --port; --port 0 takes a free one."
        ) from None
    bound.set_inheritable(True)
    return bound


def _require_indexes(settings: ServiceSettings) -> None:
    for name in settings.indexes:
        find_index(settings.store, name)
    names = published_names(settings.store)
    if names and not settings.indexes:
        _require_one(settings.store, names)
    elif not settings.indexes:
        raise MissingArtifact(
            f"A service needs an index; the store {settings.store} has none. Make one: dml index FOLDER "
            "--embedder timm:NAME, or dml index NAME --model MODEL --dataset DATASET."
        )
    storage.require_store(settings.store)


def _require_one(store: str, names: Sequence[str]) -> None:
    """Raise for indexes none of which can be read what is wrong with the last; the others are served."""
    for number, name in enumerate(names, 1):
        try:
            find_index(store, name)
            return
        except DmlError:
            if number == len(names):
                raise

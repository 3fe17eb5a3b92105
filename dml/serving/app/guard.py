"""What stands before every route: request ids, admission, bodies, the time limit, headers, the log.

It is plain ASGI, since it must see a request before its body is read and an answer after its last byte.
"""

import asyncio
import json
import logging
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dml.errors import DmlError
from dml.serving.app.admission import Admission
from dml.serving.app.bodies import Bodies, Gone
from dml.serving.app.keys import Keys
from dml.serving.app.metrics import Metrics
from dml.serving.app.problems import refusal_of, response_of
from dml.serving.app.settings import ServiceSettings
from dml.serving.app.telemetry import Tracing
from dml.serving.app.writes import WriteProgress, refusal_of_failure, refusal_of_timeout

logger = logging.getLogger(__name__)
access = logging.getLogger("dml.serving.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
LINGER_S = 2.0
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


@dataclass
class _Watched:
    """An answer on its way."""

    send: Send
    request_id: str
    status: int = 0
    is_head: bool = False
    is_private: bool = True
    closes: bool = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.request_id
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
            if self.is_private:
                headers["Cache-Control"] = "no-store"
            if self.closes:
                headers["Connection"] = "close"
        elif self.is_head and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self.send(message)


class Guard:
    """ASGI middleware around the whole app.

    Args:
        app: what it guards.
        settings: of the service.
        keys: None: nobody needs one.
        metrics: of this process.
        tracing: makes the span of a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServiceSettings,
        keys: Keys | None,
        metrics: Metrics,
        tracing: Tracing,
    ) -> None:
        self._app, self._settings, self._limits = app, settings, settings.limits
        self._metrics, self._tracing = metrics, tracing
        self._admission, self._bodies = Admission(settings, keys), Bodies(settings.limits)
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._begin(scope, receive, send)
            return
        method, is_head = scope["method"], scope["method"] == "HEAD"
        if is_head:  # as GET, without the body
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:16]
        state = scope.setdefault("state", {})
        state["request_id"], state["caller"] = request_id, None
        watched = _Watched(send, request_id, is_head=is_head, is_private=scope["path"].startswith("/v1"))
        start = time.perf_counter()
        self._requests += 1
        self._metrics.in_flight.set(self._requests)
        try:
            with self._tracing.request(method, headers) as span:
                try:
                    await self._answer(scope, headers, receive, watched)
                except Gone:
                    watched.status = 499
                span["http.route"] = _route_of(scope)
                span["http.response.status_code"] = watched.status
                span["dml.request_id"] = request_id
        finally:
            self._requests -= 1
            self._metrics.in_flight.set(self._requests)
            self._record(scope, method, watched.status, time.perf_counter() - start)

    async def _begin(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and end the app; what a user can put right is said without a traceback."""
        failures: list[Message] = []

        async def hold_failure(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                failures.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, receive, hold_failure)
        except Exception as error:
            for failure in failures:
                await send({**failure, "message": str(error)} if isinstance(error, DmlError) else failure)
            raise

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: _Watched) -> None:
        """Answer, or refuse in the form of all errors."""
        try:
            send.closes = True  # if it is refused: what of the body is still on its way is nobody's
            caller = self._admission.admit(scope, headers, self._requests)
            with self._bodies.reserved(headers, takes_one=caller is not None) as room:
                body = await self._bodies.read(receive, room)
                send.closes = False
                await self._call(scope, body, receive, send)
        except Gone:
            raise
        except Exception as error:
            await self._refuse(scope, error, receive, send)

    async def _call(self, scope: Scope, body: bytes, receive: Receive, send: _Watched) -> None:
        parts = [body]

        async def replay() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            return await receive()

        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._app(scope, replay, send)
        except TimeoutError:
            raise refusal_of_timeout(self._limits.seconds, _write_of(scope)) from None

    async def _refuse(self, scope: Scope, error: Exception, receive: Receive, send: _Watched) -> None:
        refused = refusal_of(error, hide=self._settings.store)
        if refused.status == 500:
            logger.error("request %s failed", send.request_id, exc_info=error)
            refused = refusal_of_failure(refused, _write_of(scope))
        if send.status:  # it has begun: a broken answer must not look whole
            raise error
        answer = response_of(refused, send.request_id)
        if not send.closes:
            await answer(scope, receive, send)
            return

        async def send_and_linger(message: Message) -> None:
            """A connection that is closed while the client sends is reset, and the answer is lost with it."""
            is_last = message["type"] == "http.response.body"
            await send({**message, "more_body": True} if is_last else message)
            if is_last:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S):
                        while (await receive()).get("more_body"):
                            pass
                await send({"type": "http.response.body"})

        await answer(scope, receive, send_and_linger)

    def _record(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        """One line of JSON: no id of an item, no image, no vector, no key."""
        route = _route_of(scope)
        self._metrics.request.labels(route, str(status)).observe(seconds)
        caller = scope["state"]["caller"]
        access.info(
            json.dumps(
                {
                    "request_id": scope["state"]["request_id"],
                    "method": method,
                    "route": route,
                    "index": str(scope.get("path_params", {}).get("name", ""))[:100],
                    "status": status,
                    "milliseconds": round(seconds * 1000, 2),
                    "key": "" if caller is None else caller.id,
                }
            )
        )


def _write_of(scope: Scope) -> WriteProgress | None:
    """What a request writes; None: nothing, or it has not come to it."""
    progress: WriteProgress | None = scope["state"].get("write")
    return progress


def _route_of(scope: Scope) -> str:
    """The path of a route with its parameters' names, so that no id is in a log."""
    return str(getattr(scope.get("route"), "path", "other"))

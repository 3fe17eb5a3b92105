"""What stands before every route: request ids, keys, limits of body, rate, number and time, headers, the log.

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
from dml.serving.app.keys import LOCAL, Caller, Keys
from dml.serving.app.metrics import Metrics
from dml.serving.app.problems import Refused, refusal_of, response_of
from dml.serving.app.rates import Rates
from dml.serving.app.settings import ServiceSettings
from dml.serving.app.telemetry import Tracing

logger = logging.getLogger(__name__)
access = logging.getLogger("dml.serving.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
LINGER_S = 2.0
_OPEN_TO_ALL = ("/healthz", "/readyz", "/openapi.json")
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


class _Gone(Exception):
    """The client went away before its request was whole."""


@dataclass
class _Watched:
    """An answer on its way."""

    send: Send
    request_id: str
    status: int = 0
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
        self._keys, self._metrics, self._tracing = keys, metrics, tracing
        self._rates = Rates(self._limits.rate, self._limits.burst)
        self._requests = 0
        self._bodies_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._begin(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:16]
        state = scope.setdefault("state", {})
        state["request_id"], state["caller"] = request_id, None
        watched = _Watched(send, request_id, is_private=scope["path"].startswith("/v1"))
        start = time.perf_counter()
        self._requests += 1
        self._metrics.in_flight.set(self._requests)
        try:
            with self._tracing.request(scope["method"], headers) as span:
                try:
                    await self._answer(scope, headers, receive, watched)
                except _Gone:
                    watched.status = 499
                span["http.route"] = _route_of(scope)
                span["http.response.status_code"] = watched.status
                span["dml.request_id"] = request_id
        finally:
            self._requests -= 1
            self._metrics.in_flight.set(self._requests)
            self._record(scope, watched.status, time.perf_counter() - start)

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
        reserved = 0
        try:
            async with asyncio.timeout(self._limits.seconds + self._limits.body_seconds):
                try:
                    self._admit(scope, headers)
                    reserved = self._reserve(headers, scope["state"]["caller"])
                    body = await self._body(receive, reserved)
                except (Refused, TimeoutError) as error:
                    send.closes = True  # what of the body is still on its way is nobody's
                    if isinstance(error, TimeoutError):
                        raise self._too_slow_a_body() from None
                    raise
                await self._call(scope, body, receive, send)
        except _Gone:
            raise
        except Exception as error:
            await self._refuse(scope, error, receive, send)
        finally:
            self._bodies_bytes -= reserved

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
            raise Refused(
                503,
                "timeout",
                f"A request must be answered within {self._limits.seconds:g} s",
                "this one was not",
                "Send fewer queries at once, or try again later.",
                retry_after=5,
            ) from None

    async def _refuse(self, scope: Scope, error: Exception, receive: Receive, send: _Watched) -> None:
        refused = refusal_of(error, hide=self._settings.store)
        if refused.status == 500:
            logger.error("request %s failed", send.request_id, exc_info=error)
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

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Who sends it, and whether it may: before its body is read."""
        if self._requests > self._limits.requests:
            raise Refused(
                503,
                "overloaded",
                f"At most {self._limits.requests} requests are answered at once",
                "this is one more",
                "Try again.",
                retry_after=1,
            )
        self._require_host(headers)
        caller = self._caller(scope, headers)
        scope["state"]["caller"] = caller
        scope["state"]["limit_rate"] = lambda tokens: self._limit_rate(caller, scope, tokens)
        if scope["path"].startswith("/v1"):
            self._limit_rate(caller, scope, 1)

    def _limit_rate(self, caller: Caller | None, scope: Scope, tokens: int) -> None:
        address = (scope.get("client") or ("unknown",))[0]
        who = f"address {address}" if caller is None or caller is LOCAL else f"key {caller.id}"
        wait = self._rates.take(who, tokens)
        if wait:
            raise Refused(
                429,
                "rate_limited",
                f"A caller must send at most {self._limits.rate:g} queries a second",
                "more came",
                f"Wait {wait} s.",
                retry_after=wait,
            )

    def _require_host(self, headers: Headers) -> None:
        """Without keys a page of any web site could ask a service of this machine, by a name of its own for
        127.0.0.1: so the name is checked."""
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._settings.hosts and name.lower() not in self._settings.hosts:
            raise Refused(
                403,
                "host",
                f"A service without keys must be called as {', '.join(self._settings.hosts)}",
                "another name came",
                "Use one of these, or serve with keys.",
            )
        if self._settings.hosts and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Refused(
                403,
                "cross_site",
                "A service without keys must be asked by its own page or a program",
                "the page of another site asks",
                "Serve with keys.",
            )

    def _caller(self, scope: Scope, headers: Headers) -> Caller | None:
        """None: anybody, of what is open to all."""
        if self._keys is None:
            return LOCAL
        path = scope["path"]
        scheme, _, key = headers.get("authorization", "").partition(" ")
        caller = self._keys.caller(key.strip()) if scheme.lower() == "bearer" and key else None
        if caller is None and (path.startswith("/v1") or path == "/metrics") and path not in _OPEN_TO_ALL:
            got = "it is none of this service's" if key else "there is none"
            raise Refused(
                401,
                "unauthorized",
                "A request must have an API key in the header Authorization: Bearer KEY",
                got,
                "Ask the operator for one: dml keys make.",
            )
        return caller

    def _reserve(self, headers: Headers, caller: Caller | None) -> int:
        """Room for the body: of the length it declares, or as much as it may be.

        What is open to all takes no body, so that nobody without a key can take the room of the others.
        """
        most = 0 if caller is None else self._limits.body_bytes
        declared = headers.get("content-length")
        chunked = "transfer-encoding" in headers
        size = int(declared) if declared and declared.isdecimal() else most * chunked
        if size > most:
            raise self._too_large(f"{size} came", most)
        if self._bodies_bytes + size > self._limits.bodies_bytes:
            raise Refused(
                503,
                "overloaded",
                f"The bodies of all requests must be at most {self._limits.bodies_bytes} bytes together",
                "this one would be too much",
                "Try again.",
                retry_after=1,
            )
        self._bodies_bytes += size
        return size

    async def _body(self, receive: Receive, room: int) -> bytes:
        """The whole body; a slow one is given up."""
        parts: list[bytes] = []
        size = 0
        async with asyncio.timeout(self._limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > max(room, 0):
                    raise self._too_large("more came", room)
                if not message.get("more_body"):
                    return b"".join(parts)

    def _too_large(self, got: str, most: int) -> Refused:
        return Refused(
            413,
            "too_large",
            f"A body must be at most {most} bytes",
            got,
            "Send a smaller image, or fewer queries.",
        )

    def _too_slow_a_body(self) -> Refused:
        return Refused(
            408,
            "slow_body",
            f"A body must arrive within {self._limits.body_seconds:g} s",
            "it did not",
            "Send it again.",
        )

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """One line of JSON: no id of an item, no image, no vector, no key."""
        route = _route_of(scope)
        self._metrics.request.labels(route, str(status)).observe(seconds)
        caller = scope["state"]["caller"]
        access.info(
            json.dumps(
                {
                    "request_id": scope["state"]["request_id"],
                    "method": scope["method"],
                    "route": route,
                    "index": str(scope.get("path_params", {}).get("name", ""))[:100],
                    "status": status,
                    "milliseconds": round(seconds * 1000, 2),
                    "key": "" if caller is None else caller.id,
                }
            )
        )


def _route_of(scope: Scope) -> str:
    """The path of a route with its parameters' names, so that no id is in a log."""
    return str(getattr(scope.get("route"), "path", "other"))

"""Images on the web: one GET per file with limits and retries, and a reason for every failure."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urljoin

import httpx

from dml.data.sources.access import Access, require_web_address, shown_address, without_query
from dml.data.sources.sample import Refused

_MOST_REDIRECTS = 5
_FIRST_PAUSE_S = 0.5
_RETRYABLE_STATUS = {408, 425, 429, 500, 502, 503, 504}
_HEADERS = {"User-Agent": "dml-platform/0.1", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
_thread_state = threading.local()
T = TypeVar("T")
logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs signed URLs


class Retryable(Exception):
    """A temporary failure: the server is busy, restarting, or closed the connection."""

    def __init__(self, reason: str, detail: str, pause_s: float = 0.0) -> None:
        self.reason, self.detail, self.pause_s = reason, detail, pause_s


def fetch(url: str, access: Access, max_bytes: int) -> bytes:
    """Download a URL.

    Args:
        url: http or https, below an allowed prefix, like every URL that it redirects to.
        access: the allowed prefixes, the timeout and the number of retries.
        max_bytes: size limit, checked against the announced length before reading.

    Raises:
        Refused: with the reason, such as "HTTP 403", "connection refused" or "short body".
    """
    return run(lambda client: _fetch(client, url, access, max_bytes))


def run(requests: Callable[[httpx.AsyncClient], Coroutine[Any, Any, T]]) -> T:
    """The result of requests by this thread's client."""
    session = _session()
    return session.runner.run(requests(session.client))


async def head(client: httpx.AsyncClient, url: str, access: Access) -> tuple[str, httpx.Headers]:
    """The headers of a URL's content, without the content.

    Args:
        client: that of `run`.
        url: as for `fetch`.
        access: the allowed prefixes.

    Returns:
        The URL that it redirects to, or itself; and the headers.

    Raises:
        Refused, Retryable: as `fetch`, which retries the second.
    """
    final_url, answer = await _follow(client, "HEAD", url, access, 0)
    return final_url, answer.headers


class _Session(NamedTuple):
    runner: asyncio.Runner
    client: httpx.AsyncClient


def _session() -> _Session:
    """One event loop and one connection pool per thread and process.

    A loop, because only cancelling a task stops a request in time in every phase: DNS, headers and body.
    """
    if getattr(_thread_state, "pid", None) != os.getpid():
        runner = asyncio.Runner()
        # No cookies: an invalid one would break every later request of this thread.
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        client = httpx.AsyncClient(headers=_HEADERS, cookies=no_cookies, timeout=None, follow_redirects=False)
        _thread_state.pid, _thread_state.session = os.getpid(), _Session(runner, client)
    session: _Session = _thread_state.session
    return session


async def _fetch(client: httpx.AsyncClient, url: str, access: Access, max_bytes: int) -> bytes:
    failure: Retryable | None = None
    tries = 0
    try:
        async with asyncio.timeout(access.timeout_s) as limit:
            while True:
                tries += 1
                try:
                    return (await _follow(client, "GET", url, access, max_bytes))[1].body
                except Retryable as temporary:
                    failure = temporary
                    pause_s = max(_FIRST_PAUSE_S * 2 ** (tries - 1), temporary.pause_s)
                    ends_at = limit.when() or 0.0
                    if tries > access.retries or asyncio.get_running_loop().time() + pause_s >= ends_at:
                        break
                    await asyncio.sleep(pause_s)
    except TimeoutError as error:
        if failure is None:
            detail = f"it took more than timeout_s, {access.timeout_s:g} s"
            raise Refused("timed out", detail) from error
    assert failure is not None
    after = f" after {tries} tries" if tries > 1 else ""
    raise Refused(failure.reason + after, failure.detail)


class _Answer(NamedTuple):
    headers: httpx.Headers
    body: bytes


async def _follow(
    client: httpx.AsyncClient, method: str, url: str, access: Access, max_bytes: int
) -> tuple[str, _Answer]:
    """One attempt, following redirects; the last URL and its answer."""
    first = url
    require_web_address(url, f"{shown_address(url)} must be")
    for _ in range(_MOST_REDIRECTS + 1):
        access.require_url(url)
        try:
            answer_or_url = await _request(client, method, url, max_bytes)
        except (Refused, Retryable) as failure:
            if url != first:
                failure.detail = f"redirected to {without_query(url)}: {failure.detail}"
            raise
        if isinstance(answer_or_url, _Answer):
            return url, answer_or_url
        url = answer_or_url
    raise Refused("too many redirects", f"more than {_MOST_REDIRECTS}, the last to {without_query(url)}")


async def _request(client: httpx.AsyncClient, method: str, url: str, max_bytes: int) -> _Answer | str:
    """The answer, or the URL of a redirect."""
    received, announced = 0, None
    try:
        request = client.build_request(method, url)
    except httpx.InvalidURL as error:
        raise Refused("not a web address", str(error)) from error
    try:
        async with contextlib.aclosing(await client.send(request, stream=True)) as response:
            if response.has_redirect_location:
                return _redirect_target(url, response.headers["location"])
            if response.status_code != httpx.codes.OK:
                raise _status_error(response)
            if method == "HEAD":
                return _Answer(response.headers, await response.aread())
            announced = _announced_bytes(response)
            if announced is not None and announced > max_bytes:
                raise _too_many_bytes(announced, max_bytes)
            parts = []
            async for part in response.aiter_bytes():
                received += len(part)
                if received > max_bytes:
                    raise _too_many_bytes(received, max_bytes, more=True)
                parts.append(part)
    except httpx.InvalidURL as error:  # httpx parses a redirect's target, also if it does not follow it
        raise Refused("not a web address", f"it redirects to what is none: {error}") from error
    except httpx.DecodingError as error:
        raise Refused("unreadable file", f"its encoding is damaged: {error}") from error
    except (httpx.TransportError, OSError) as error:
        raise _connection_error(error, received, announced) from error
    if received == 0:
        raise Refused("empty file", "0 bytes")
    return _Answer(response.headers, b"".join(parts))


def _redirect_target(url: str, location: str) -> str:
    """The URL of a redirect's target; raises Refused if it is not http or https."""
    try:
        target = urljoin(url, location)
    except ValueError:  # http://[bad/
        target = ""
    require_web_address(target, f"it redirects to {shown_address(location)}, and must to")
    return target


def _announced_bytes(response: httpx.Response) -> int | None:
    length = response.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() else None


def _status_error(response: httpx.Response) -> Exception:
    reason = f"HTTP {response.status_code}"
    if response.status_code not in _RETRYABLE_STATUS:
        return Refused(reason, response.reason_phrase)
    pause = response.headers.get("retry-after", "")
    pause_s = float(pause) if pause.isascii() and pause.isdecimal() else 0.0
    return Retryable(reason, response.reason_phrase, pause_s)


def _connection_error(error: Exception, received: int, announced: int | None) -> Exception:
    """The error for a failed connection, from the causes wrapped by httpx and its layers."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            if cause.errno == socket.EAI_AGAIN:  # the name server itself did not answer
                return Retryable("no such host", str(cause.strerror))
            return Refused("no such host", str(cause.strerror))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Refused("certificate not trusted", cause.verify_message)
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if announced is not None and received < announced and not isinstance(error, httpx.ConnectError):
        return Retryable(f"short body: {received} of {announced} bytes", "the server broke off")
    if isinstance(error, httpx.RemoteProtocolError) and received:
        return Retryable("short body", f"the server broke off after {received} bytes: {error}")
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
        return Refused("not an HTTP answer", str(error))
    if errno.ECONNREFUSED in numbers:
        return Retryable("connection refused", "nothing answers there")
    if isinstance(error, httpx.ConnectError):
        return Retryable("no connection", str(error))
    if isinstance(error, httpx.UnsupportedProtocol | httpx.ProxyError):
        return Refused("no connection", str(error))
    return Retryable("connection reset", str(error) or type(error).__name__)


def _causes(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    pending = [error]
    while pending:
        cause = pending.pop()
        if cause is not None and cause not in causes:
            causes.append(cause)
            pending += [cause.__cause__, cause.__context__]
            if isinstance(cause, BaseExceptionGroup):
                pending += cause.exceptions
    return causes


def _too_many_bytes(size_bytes: int, max_bytes: int, *, more: bool = False) -> Refused:
    return Refused(
        "too many bytes", f"{size_bytes} bytes{' and more' if more else ''}; at most {max_bytes} are read"
    )

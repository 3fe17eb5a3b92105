"""Bodies of requests: read whole within a time, and no more bytes of all at once than there is room for."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Receive

from dml.serving.app.problems import Refused
from dml.serving.app.settings import Limits


class Gone(Exception):
    """The client went away before its request was whole."""


class Bodies:
    """Reads bodies.

    Args:
        limits: of the service.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._reserved_bytes = 0

    @contextmanager
    def reserved(self, headers: Headers, *, takes_one: bool) -> Iterator[int]:
        """Room for a body, until the end of the block: of the length it declares, or as much as it may be.

        Args:
            headers: of the request.
            takes_one: False: it may have none. What is open to all takes no body, so that nobody without a
                key can take the room of the others.

        Raises:
            Refused: it is too large, or there is no room for it now.
        """
        most = self._limits.body_bytes if takes_one else 0
        declared = headers.get("content-length")
        chunked = "transfer-encoding" in headers
        size = int(declared) if declared and declared.isdecimal() else most * chunked
        if size > most:
            raise self._too_large(f"{size} came", most)
        if self._reserved_bytes + size > self._limits.bodies_bytes:
            raise Refused(
                503,
                "overloaded",
                f"The bodies of all requests must be at most {self._limits.bodies_bytes} bytes together",
                "this one would be too much",
                "Try again.",
                retry_after=1,
            )
        self._reserved_bytes += size
        try:
            yield size
        finally:
            self._reserved_bytes -= size

    async def read(self, receive: Receive, room: int) -> bytes:
        """The whole body.

        Args:
            receive: of the request.
            room: bytes it may have.

        Raises:
            Refused: it is larger, or too slow.
            Gone: the client went away.
        """
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > max(room, 0):
                        raise self._too_large("more came", room)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise self._too_slow() from None

    def _too_large(self, got: str, most: int) -> Refused:
        return Refused(
            413,
            "too_large",
            f"A body must be at most {most} bytes",
            got,
            "Send a smaller image, or fewer queries.",
        )

    def _too_slow(self) -> Refused:
        return Refused(
            408,
            "slow_body",
            f"A body must arrive within {self._limits.body_seconds:g} s",
            "it did not",
            "Send it again.",
        )

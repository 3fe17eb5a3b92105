"""Stamps of images on the web: by one HEAD request each, without the image.

A server names the content of an answer by a strong ETag, or by when it was last modified and its length.
Where it does neither, only the content tells whether an image has changed.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from dml.data.sources import web
from dml.data.sources.access import Access, without_query
from dml.data.sources.sample import Stamp
from dml.progress import begin, count

_CONCURRENT = 16
_MOST_WITHOUT = 20
"""Of a server that has given as many images no stamp, and none a stamp, no more are asked for."""
_LEAST_AGE_S = 2.0
"""HTTP's times are whole seconds: a file changed within the last one could change again unseen."""


def web_stamps(urls: Sequence[str], access: Access) -> list[Stamp | None]:
    """The stamps of images on the web; none is retried, since what has no stamp is read.

    Args:
        urls: http or https, below an allowed prefix, like every URL that they redirect to.
        access: the allowed prefixes, and the time for each.

    Returns:
        For each URL its stamp; None where the server does not answer, or does not name its content.
    """
    begin("comparing images on the web", "images", len(urls))
    return web.run(lambda client: _stamps(client, urls, access))


async def _stamps(client: httpx.AsyncClient, urls: Sequence[str], access: Access) -> list[Stamp | None]:
    found: list[Stamp | None] = [None] * len(urls)
    with_stamp: Counter[str] = Counter()
    without: Counter[str] = Counter()
    pending = iter(enumerate(urls))

    async def ask() -> None:
        for number, url in pending:
            server = _server(url)
            if without[server] < _MOST_WITHOUT or with_stamp[server]:
                found[number] = await _stamp(client, url, access)
                (without if found[number] is None else with_stamp)[server] += 1
            count()

    async with asyncio.TaskGroup() as group:
        for _ in range(_CONCURRENT):
            group.create_task(ask())
    return found


def _server(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


async def _stamp(client: httpx.AsyncClient, url: str, access: Access) -> Stamp | None:
    try:
        async with asyncio.timeout(access.timeout_s):
            final_url, headers = await web.head(client, url, access)
    except Exception:  # servers of others can fail in any way; `fetch` says how
        return None
    named = named_content(headers)
    # The query is left out: a redirect may sign each of its targets anew.
    return None if named is None else Stamp(f"{without_query(final_url)} {named}")


def named_content(headers: httpx.Headers) -> str | None:
    """What an answer's headers name its content by: equal text means equal bytes.

    Args:
        headers: of an answer to HEAD or GET.

    Returns:
        The strong ETag; else time of the last change, length and weak ETag; None if these do not tell every
        change.

    Source: RFC 9110, sec. 8.8: a weak ETag (`W/"1"`) may stay where bytes change, and a time is as good as a
    strong ETag only if it lies before the answer.
    """
    etag, length = headers.get("etag", ""), headers.get("content-length", "")
    if etag.startswith('"'):
        return f"{etag} {length}"
    changed, answered = (_time(headers.get(name, "")) for name in ("last-modified", "date"))
    if changed is None or answered is None or not length:
        return None
    if (answered - changed).total_seconds() < _LEAST_AGE_S:
        return None
    return f"{changed.isoformat()} {length} {etag}"


def _time(text: str) -> datetime | None:
    try:
        time = parsedate_to_datetime(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else None

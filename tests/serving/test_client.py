"""The client: what it sends, and what it makes of answers."""

from pathlib import Path

import httpx
import numpy as np
import pytest

from dml.errors import InvalidSetting, Unreachable
from dml.serving.client import Client, ServiceError

PROBLEM = {"code": "overloaded", "must": "a", "got": "b", "do": "c", "request_id": "1"}


def client_of(answer):
    """A client, and the paths that it asks for."""
    asked = []

    def handle(request):
        asked.append(request.url.raw_path.decode())
        return answer

    return Client("http://127.0.0.1:8000", transport=httpx.MockTransport(handle)), asked


@pytest.mark.parametrize("id_", ["..", ".", "../identities/ann", "a b/%2F?#.jpg"])
def test_an_id_is_one_part_of_the_path_whatever_it_holds(id_):
    client, asked = client_of(httpx.Response(404, json={"error": PROBLEM}))
    with pytest.raises(ServiceError):
        client.forget("shop", id_)
    (path,) = asked
    base, _, part = path.rpartition("/")
    assert base == "/v1/indexes/shop/items"
    assert httpx.URL(f"http://x/?q={part}").params["q"] == id_


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>hello</html>"),
        httpx.Response(307, headers={"Location": "/"}),
        httpx.Response(502, text="Bad Gateway"),
    ],
)
def test_an_answer_of_something_else_is_said_with_its_address(answer):
    client, _ = client_of(answer)
    with pytest.raises(
        Unreachable, match=f"http://127.0.0.1:8000; something else answered.*{answer.status_code}"
    ):
        client.indexes()


@pytest.mark.parametrize(("after", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None)])
def test_when_to_try_again_is_known_where_it_is_said_in_seconds(after, seconds):
    client, _ = client_of(httpx.Response(503, json={"error": PROBLEM}, headers={"Retry-After": after}))
    with pytest.raises(ServiceError) as refused:
        client.indexes()
    assert refused.value.retry_after == seconds


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("http://[::1", None),
        ("localhost:8000", None),
        ("ftp://127.0.0.1", None),
        ("", None),
        ("http://127.0.0.1", "a\nb"),
        ("http://127.0.0.1", "é"),
    ],
)
def test_what_cannot_be_an_address_or_a_key_is_refused(address, key):
    with pytest.raises(InvalidSetting):
        Client(address, key)


@pytest.mark.parametrize(
    ("method", "arguments", "options"),
    [
        ("search", [[b"image"]], {"k": 5_000}),
        ("search", [[b"image"]], {"kk": 5}),
        ("search", [[]], {}),
        ("search", [[b""]], {}),
        ("search", [[Path("query.jpg")]], {}),
        ("search", [b"image"], {}),
        ("search", ["shirts/17.jpg"], {}),
        ("search", [[np.full(4, np.nan)]], {}),
        ("identify", [[b"image"]], {"scopes": [""] * 40}),
        ("verify", [b"image", Path("other.jpg")], {}),
        ("enrol", ["ann"], {"images": b"image"}),
        ("enrol", ["ann"], {"images": [b"image"], "attributes": {"price": float("inf")}}),
        ("item", ["\ud800"], {}),
    ],
)
def test_what_cannot_be_a_request_is_refused_before_it_is_sent(method, arguments, options):
    client, asked = client_of(httpx.Response(503, json={"error": PROBLEM}))
    with pytest.raises(InvalidSetting, match=r"must .*got .*\. [A-Z]"):
        getattr(client, method)("shop", *arguments, **options)
    assert not asked

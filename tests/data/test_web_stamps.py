"""Images on the web are read again only where the server names another content, counted by the server."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from pyarrow import parquet

from dml.config import IngestConfig, NoSplit
from dml.data.dataset import read_rows
from dml.data.ingest import ingest_source
from dml.data.sources.access import Access
from dml.data.sources.web_stamps import _MOST_WITHOUT, named_content, web_stamps
from dml.reports import DatasetChanges
from tests.data.pictures import picture

_YESTERDAY = 1_700_000_000


@dataclass
class Shop:
    """A web server's images, what it names them by, and the requests that it got."""

    images: dict[str, bytes] = field(default_factory=dict)
    etags: bool = True
    weak: bool = False
    times: bool = False
    answers_head: bool = True
    moved: dict[str, str] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    url: str = ""

    def since_last(self) -> dict[str, int]:
        counted = dict(self.requests)
        self.requests.clear()
        return counted

    def headers(self, name: str) -> dict[str, str]:
        body, headers = self.images[name], {"Content-Length": str(len(self.images[name]))}
        if self.etags:
            headers["ETag"] = f'{"W/" * self.weak}"{hash(body):x}"'
        if self.times:
            headers["Last-Modified"] = formatdate(self.changed.get(name, _YESTERDAY), usegmt=True)
        return headers


def handler(shop: Shop) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(with_body=True)

        def do_HEAD(self):
            self.answer(with_body=False)

        def answer(self, *, with_body: bool):
            shop.requests[self.command] += 1
            name = self.path.partition("?")[0].strip("/")
            if self.command == "HEAD" and not shop.answers_head:
                self.send_response(405)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif name in shop.moved:
                self.send_response(302)
                self.send_header("Location", f"{shop.moved[name]}?signature={shop.requests.total()}")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif name not in shop.images:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.send_response(200)
                for key, value in shop.headers(name).items():
                    self.send_header(key, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(shop.images[name])

        def handle(self):
            with contextlib.suppress(OSError, ValueError):
                super().handle()

        def log_message(self, *arguments):
            pass

    return Handler


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop({f"{number}.png": picture(number) for number in range(6)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(shop)) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        shop.url = f"http://127.0.0.1:{running.server_port}"
        yield shop
        running.shutdown()


def listed(shop: Shop, folder: Path, *, kind: str = "csv", labels: dict[str, str] | None = None) -> Path:
    """A manifest of all images."""
    names = sorted({*shop.images, *shop.moved})
    columns = {
        "image": [f"{shop.url}/{name}" for name in names],
        "label": [(labels or {}).get(name, f"class{number % 2}") for number, name in enumerate(names)],
    }
    path = folder / f"all.{kind}"
    if kind == "csv":
        path.write_text(
            "\n".join(["image,label", *(",".join(row) for row in zip(*columns.values(), strict=True))])
        )
    else:
        parquet.write_table(pa.table(columns), path)
    return path


def taken_in(shop: Shop, manifest: Path, store: Path, *, reread: bool = False):
    config = IngestConfig(
        name="d",
        source=str(manifest),
        split=NoSplit(),
        num_workers=1,
        retries=0,
        timeout_s=5,
        max_quarantined=1,
        allowed_prefixes=(f"{shop.url}/",),
    )
    return ingest_source(config, str(store), reread=reread)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    "named_by", [{}, {"etags": False, "times": True}, {"weak": True, "times": True}], ids=str
)
def test_only_what_is_new_or_changed_is_fetched(shop, tmp_path, kind, named_by):
    for name, value in named_by.items():
        setattr(shop, name, value)
    first = taken_in(shop, listed(shop, tmp_path, kind=kind), tmp_path / "store")
    assert shop.since_last() == {"HEAD": 6, "GET": 6}
    assert taken_in(shop, listed(shop, tmp_path, kind=kind), tmp_path / "store").dataset == first.dataset
    assert shop.since_last() == {"HEAD": 6}

    shop.images |= {"2.png": picture(900), "new.png": picture(901)}
    shop.changed["2.png"] = _YESTERDAY + 1
    report = taken_in(shop, listed(shop, tmp_path, kind=kind), tmp_path / "store")
    assert shop.since_last() == {"HEAD": 7, "GET": 2}
    assert report.changes.changed == report.changes.added == 1
    full = taken_in(shop, listed(shop, tmp_path, kind=kind), tmp_path / "other")
    assert report.dataset.fingerprint == full.dataset.fingerprint


def test_a_changed_label_fetches_no_image(shop, tmp_path):
    taken_in(shop, listed(shop, tmp_path), tmp_path / "store")
    shop.since_last()
    report = taken_in(shop, listed(shop, tmp_path, labels={"3.png": "other"}), tmp_path / "store")
    assert shop.since_last() == {"HEAD": 6}
    assert report.changes == DatasetChanges(relabelled=1, unchanged=5)


@pytest.mark.parametrize(
    "named_by",
    [{"etags": False}, {"answers_head": False}, {"weak": True}],
    ids=["length alone", "HEAD refused", "a weak ETag alone"],
)
def test_what_the_server_does_not_name_is_fetched_each_time(shop, tmp_path, named_by):
    for name, value in named_by.items():
        setattr(shop, name, value)
    for _ in range(2):
        report = taken_in(shop, listed(shop, tmp_path), tmp_path / "store")
        assert shop.since_last()["GET"] == 6
    assert report.changes.unchanged == 6


def test_on_request_everything_is_fetched(shop, tmp_path):
    taken_in(shop, listed(shop, tmp_path), tmp_path / "store")
    shop.since_last()
    assert taken_in(shop, listed(shop, tmp_path), tmp_path / "store", reread=True).changes.files_read == 6
    assert shop.since_last()["GET"] == 6


def test_a_redirect_that_is_signed_anew_each_time_leads_to_the_same_image(shop, tmp_path):
    shop.images |= {"bucket/7.png": picture(7)}
    shop.moved = {"7.png": "/bucket/7.png"}
    taken_in(shop, listed(shop, tmp_path), tmp_path / "store")
    shop.since_last()
    assert taken_in(shop, listed(shop, tmp_path), tmp_path / "store").changes.files_read == 0
    shop.moved = {"7.png": "/0.png"}
    report = taken_in(shop, listed(shop, tmp_path), tmp_path / "store")
    assert report.changes.changed == 1


def test_an_image_that_is_gone_is_refused_and_the_others_are_not_fetched(shop, tmp_path):
    manifest = listed(shop, tmp_path)
    taken_in(shop, manifest, tmp_path / "store")
    shop.since_last()
    del shop.images["3.png"]
    report = taken_in(shop, manifest, tmp_path / "store")
    assert shop.since_last() == {"HEAD": 6, "GET": 1}
    assert [refusal.reason for refusal in report.refused] == ["HTTP 404"]
    assert f"{shop.url}/3.png" not in read_rows(report.dataset)["id"].to_pylist()


def test_a_server_that_names_nothing_is_asked_for_a_few_images_only(shop):
    shop.etags = False
    urls = [f"{shop.url}/{number % 6}.png?{number}" for number in range(100)]
    assert web_stamps(urls, Access((f"{shop.url}/",))) == [None] * 100
    assert _MOST_WITHOUT <= shop.since_last()["HEAD"] <= _MOST_WITHOUT + 15


def test_no_address_outside_the_prefixes_is_asked(shop):
    elsewhere = [f"{shop.url}/0.png", "http://[bad/", "https://", "http://h:99999/a.png"]
    assert web_stamps(elsewhere, Access(("https://images.example.com/",))) == [None] * 4
    assert shop.since_last() == {}


OLD, NOW = "Tue, 14 Nov 2023 22:13:20 GMT", "Wed, 15 Nov 2023 22:13:20 GMT"


@pytest.mark.parametrize(
    ("headers", "is_named"),
    [
        ({"etag": '"a"'}, True),
        ({"etag": 'W/"a"'}, False),
        ({"etag": "a"}, False),
        ({"last-modified": OLD, "content-length": "9", "date": NOW}, True),
        ({"last-modified": OLD, "content-length": "9"}, False),
        ({"last-modified": OLD, "date": NOW}, False),
        ({"last-modified": NOW, "content-length": "9", "date": NOW}, False),
        ({"last-modified": "yesterday", "content-length": "9", "date": NOW}, False),
        ({"content-length": "9", "date": NOW}, False),
    ],
)
def test_a_content_is_named_by_a_strong_etag_or_a_past_time_and_a_length(headers, is_named):
    assert (named_content(httpx.Headers(headers)) is not None) == is_named

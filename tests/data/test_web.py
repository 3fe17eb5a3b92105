"""Images from a real web server on this machine that answers in every way a server can fail."""

import contextlib
import re
import socket
import ssl
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dml.config import ClassSplit, IngestConfig
from dml.data.dataset import read_rows
from dml.data.ingest import ingest
from dml.data.sources.access import Access
from dml.data.sources.sample import Refused
from dml.data.sources.web import fetch
from tests.data.pictures import picture
from tests.data.test_ingest import config as strict
from tests.data.test_ingest import quarantine


def config(source, **others) -> IngestConfig:
    """However many rows are refused: here they are the subject."""
    return strict(source, max_quarantined=1, **others)


IMAGE = picture(1)
requests: Counter[str] = Counter()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        requests[path] += 1
        what = path.strip("/").split("/")
        if what[0] == "status":
            self.answer(int(what[1]), b"no")
        elif what[0] == "later":
            self.answer(503, b"busy", retry_after="3600")
        elif what[0] == "flaky" and requests[path] < int(what[1]):
            self.answer(503, b"busy")
        elif what[0] == "short":
            self.answer(200, bytes(100), length=2000)
        elif what[0] == "large":
            self.answer(200, b"", length=1 << 40)
        elif what[0] == "endless":
            self.answer(200, b"", length=None)
            while True:
                self.wfile.write(bytes(1 << 16))
        elif what[0] == "slow":
            self.answer(200, b"", length=1000)
            for _ in range(1000):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif what[0] == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
        elif what[0] == "loop":
            self.answer(302, b"", location=self.path)
        elif what[0] == "to":
            self.answer(302, b"", location=self.path.partition("?")[2])
        elif what[0] == "cookie":
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nSet-Cookie: \xff=1\r\nContent-Length: %d\r\n\r\n" % len(IMAGE)
            )
            self.wfile.write(IMAGE)
        elif what[0] == "chunks":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            self.close_connection = True
        elif what[0] == "babble":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            self.close_connection = True
        elif what[0] == "silence":
            self.close_connection = True
        elif what[0] == "empty":
            self.answer(200, b"")
        else:
            self.answer(200, IMAGE)

    def answer(self, status, body, length=-1, location=None, retry_after=None):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def handle(self):
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def access(server):
    requests.clear()
    return Access((f"{server}/",), timeout_s=60, retries=1)


def refusal(url, access, max_bytes=1 << 20) -> Refused:
    with pytest.raises(Refused) as refused:
        fetch(url, access, max_bytes)
    return refused.value


def test_an_image_is_fetched_also_where_it_was_moved_to(server, access):
    assert fetch(f"{server}/a.png", access, 1 << 20) == IMAGE
    assert fetch(f"{server}/to?/b.png", access, 1 << 20) == IMAGE
    assert fetch(f"{server}/a b/ü.png", access, 1 << 20) == IMAGE


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("status/403", "HTTP 403"),
        ("status/404", "HTTP 404"),
        ("status/410", "HTTP 410"),
        ("status/304", "HTTP 304"),
        ("status/429", "HTTP 429 after 2 tries"),
        ("status/500", "HTTP 500 after 2 tries"),
        ("reset", "connection reset after 2 tries"),
        ("short", "short body: 100 of 2000 bytes after 2 tries"),
        ("chunks", "short body after 2 tries"),
        ("babble", "not an HTTP answer"),
        ("silence", "connection reset after 2 tries"),
        ("empty", "empty file"),
        ("loop", "too many redirects"),
    ],
)
def test_a_failure_is_called_what_it_is(server, access, path, reason):
    assert refusal(f"{server}/{path}", access).reason == reason


def test_a_bad_cookie_does_not_spoil_what_is_fetched_after_it(server, access):
    assert [fetch(f"{server}/{path}", access, 10_000) for path in ("cookie", "ok")] == [IMAGE, IMAGE]


def test_only_what_may_pass_is_tried_again(server, access):
    patient = Access(access.allowed_prefixes, timeout_s=60, retries=3)
    assert fetch(f"{server}/flaky/3", patient, 1 << 20) == IMAGE
    refusal(f"{server}/status/404", patient)
    assert requests == {"/flaky/3": 3, "/status/404": 1}


def test_a_retry_after_beyond_the_timeout_is_not_waited_for(server, access):
    begin = time.monotonic()
    assert refusal(f"{server}/later", access).reason == "HTTP 503"
    assert time.monotonic() - begin < access.timeout_s / 2


def test_an_untrusted_certificate_is_called_so(tmp_path):
    write_certificate(tmp_path / "cert.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{running.server_port}/"
        assert refusal(url, Access((url,))).reason == "certificate not trusted"
        running.shutdown()


def write_certificate(path):
    """A key and a certificate that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(pem))


def test_a_server_that_is_not_there_is_called_so(access):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        assert refusal(nobody, Access((nobody,), retries=1)).reason == "connection refused after 2 tries"
    nowhere = "http://no-such-host.invalid/a.png"
    assert refusal(nowhere, Access((nowhere,), retries=0)).reason == "no such host"


def test_no_time_and_no_bytes_beyond_the_limits(server, access):
    begin = time.monotonic()
    slow = refusal(f"{server}/slow", Access(access.allowed_prefixes, timeout_s=0.5))
    assert slow.reason == "timed out"
    assert "timeout_s" in slow.detail
    assert time.monotonic() - begin < 25, "it would drip for 50 s"
    assert refusal(f"{server}/large", access).detail == f"{1 << 40} bytes; at most {1 << 20} are read"
    assert refusal(f"{server}/endless", access).reason == "too many bytes"


def test_a_server_that_accepts_and_says_nothing_times_out():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert refusal(url, Access((url,), timeout_s=0.5)).reason == "timed out"


@pytest.mark.parametrize(
    "location", ["http://[bad/", "data:image/png;base64," + "A" * 9000, "file:///etc/passwd", "ftp://h/a.png"]
)
def test_a_redirect_must_lead_to_a_web_address(server, access, location):
    refused = refusal(f"{server}/to?{location}", access)
    assert refused.reason == "not a web address"
    assert refused.detail.startswith("it redirects to ")
    assert len(refused.detail) < 250


@pytest.mark.parametrize(
    "url", ["http://[bad/a.png", "http:///a.png", "https://h:99999/a.png", "http://h:x/a"]
)
def test_what_is_no_address_is_called_so(access, url):
    assert refusal(url, access).reason == "not a web address"


@pytest.mark.parametrize("location", ["http://localhost:1/a.png", "//127.0.0.2/a.png"])
def test_a_redirect_must_lead_below_an_allowed_prefix_too(server, access, location):
    assert refusal(f"{server}/to?{location}", access).reason == "outside allowed prefixes"


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.com/shop/a.png",
        "https://images.example.com:443/shop/sub/a%20b.png?size=1",
        "HTTPS://IMAGES.example.com/shop/a.png",
    ],
)
def test_an_address_below_a_prefix_is_allowed(url):
    Access(("https://images.example.com/shop/",)).require_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example.com/shop/a.png",
        "https://images.example.com/shopping/a.png",
        "https://images.example.com/shop/../a.png",
        "https://images.example.com/shop/%2e%2e/a.png",
        "https://images.example.com/shop/..%2fa.png",
        "https://images.example.com/shop/..%5ca.png",
        "https://images.example.com.evil.com/shop/a.png",
        "https://images.example.com@evil.com/shop/a.png",
        "https://evil.com\\@images.example.com/shop/a.png",
        "https://images.example.com:8443/shop/a.png",
        "https://user@images.example.com/shop/a.png",
        "https://images.example.com\t/shop/a.png",
        "https://[::1/shop/a.png",
        "http://127.0.0.1/",
        "https:///shop/a.png",
    ],
)
def test_an_address_that_only_looks_as_one_is_not(url):
    with pytest.raises(Refused, match="outside allowed prefixes"):
        Access(("https://images.example.com/shop/",)).require_url(url)


def test_one_bad_address_is_one_row_of_the_quarantine(server, tmp_path):
    requests.clear()
    rows = ["a.png,cat", "b.png,dog", "short,cat", "status/403,cat", "status/500,dog", "large,dog"]
    manifest = tmp_path / "m.csv"
    manifest.write_text("image,label\n" + "".join(f"{server}/{row}\n" for row in rows))
    ref = ingest(config(manifest, allowed_prefixes=(f"{server}/",), retries=0), str(tmp_path / "store"))
    assert sorted(read_rows(ref)["label"].to_pylist()) == ["cat", "dog"]
    assert {row["locator"].removeprefix(server): row["reason"] for row in quarantine(ref)} == {
        "/short": "short body: 100 of 2000 bytes",
        "/status/403": "HTTP 403",
        "/status/500": "HTTP 500",
        "/large": "too many bytes",
    }


@pytest.mark.slow
def test_progress_is_reported_while_a_server_is_slow(server, tmp_path, caplog):
    rows = [("ok", "a"), ("slow/1", "a"), ("slow/2", "a"), ("ok?2", "b"), ("ok?3", "c"), ("ok?4", "d")]
    (tmp_path / "m.csv").write_text("image,label\n" + "".join(f"{server}/{url},{c}\n" for url, c in rows))
    with caplog.at_level("INFO", "dml"):
        ingest(
            config(tmp_path / "m.csv", allowed_prefixes=(f"{server}/",), timeout_s=4), str(tmp_path / "store")
        )
    assert re.search(r"reading, [1-5] of 6 images", caplog.text)


def test_without_the_setting_no_address_is_requested(server, tmp_path):
    requests.clear()
    (tmp_path / "a.png").write_bytes(picture(2))
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        f"image,label\na.png,cat\n{server}/b.png,dog\n/etc/hostname,dog\n/proc/self/environ,dog\n"
    )
    ref = ingest(config(manifest, split=ClassSplit(test_fraction=0)), str(tmp_path / "store"))
    assert ref.rows == 1
    assert {row["reason"] for row in quarantine(ref)} == {"outside allowed prefixes"}
    assert all("allowed_prefixes" in row["detail"] for row in quarantine(ref))
    assert not requests

"""A dead, silent or wrong S3 server is named in time, with the bucket and what to do; a slow one serves."""

import os
import pickle
import socket
import time

import pyarrow as pa
import pytest
from pyarrow import fs, parquet

from dml import storage
from dml.errors import InvalidSetting, StorageUnavailable, Unreachable
from tests.faulty_server import Relay, refusing, saying, serving, silent

SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.fixture
def server(monkeypatch):
    """Tells the clients of a server's address."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "DML_S3_TIMEOUT_S": "5",
    }.items():
        monkeypatch.setenv(name, value)

    def use(address):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        return address

    return use


@pytest.fixture
def relay(s3_store, s3_endpoint, server):
    """A relay before the real S3 server that the clients are told of."""
    relayed = Relay(s3_endpoint)
    with serving(relayed, receive_bytes=4096) as address:
        server(address)
        yield relayed


@pytest.fixture
def one_second(server, monkeypatch):
    """No server is waited for longer."""
    monkeypatch.setenv("DML_S3_TIMEOUT_S", "1")


def error_of(call, *arguments):
    """What a call fails with, and after how many seconds."""
    start = time.monotonic()
    with pytest.raises(StorageUnavailable) as caught:
        call(*arguments)
    message = str(caught.value)
    assert SECRET not in message
    assert "\n" not in message
    return message, time.monotonic() - start


def test_an_unavailable_store_is_an_unreachable_server_and_a_system_error():
    assert issubclass(StorageUnavailable, Unreachable)
    assert issubclass(StorageUnavailable, OSError)
    error = StorageUnavailable("S3 must answer")
    assert str(pickle.loads(pickle.dumps(error))) == "S3 must answer"


@pytest.mark.parametrize(
    ("answer", "reason", "remedy"),
    [
        (refusing(403, "InvalidAccessKeyId", "no such key"), "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (refusing(403, "SignatureDoesNotMatch", f"not {SECRET}"), "SignatureDoesNotMatch", "AWS_PROFILE"),
        (refusing(400, "ExpiredToken", "expired"), "ExpiredToken", "have expired"),
        (refusing(404, "NoSuchBucket", "there is none"), "NoSuchBucket", "Make the bucket"),
        (refusing(400, "AuthorizationHeaderMalformed", "not eu"), "Malformed: not eu", "AWS_DEFAULT_REGION"),
        (refusing(403, "AccessDenied", "no"), "ACCESS_DENIED", "Use credentials that may"),
        (saying(200, "text/html", "<html>hello</html>"), "another server's than S3's", "AWS_ENDPOINT_URL"),
        (saying(200, "application/xml", "{}"), "another server's than S3's", "AWS_ENDPOINT_URL"),
        (saying(404, "text/html", "<html>no</html>"), "than S3's, status 404", "AWS_ENDPOINT_URL"),
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9\r\n"), "not HTTP", "https://"),
        (lambda connection: None, "connection broke", "https://"),
    ],
    ids=lambda value: value if isinstance(value, str) else "answer",
)  # fmt: skip
def test_what_a_server_answers_is_said_with_its_address_the_bucket_and_what_to_do(
    server, answer, reason, remedy
):
    with serving(answer) as address:
        server(address)
        message, _ = error_of(storage.exists, "s3://photos/store/manifest.json")
    assert message.startswith(f"S3 at {address} must answer for bucket 'photos'; ")
    assert reason in message
    assert remedy in message


def test_a_server_that_speaks_no_tls_is_told_from_one_that_does_not_answer(server):
    with serving(saying(200, "text/html", "hello")) as address:
        server(address.replace("http:", "https:"))
        message, _ = error_of(storage.exists, "s3://photos/store")
    assert "TLS fails: [SSL: WRONG_VERSION_NUMBER]" in message
    assert "http:// for a server without TLS" in message


@pytest.mark.parametrize("call", [storage.exists, storage.list_etags], ids=["arrow", "boto3"])
def test_a_dead_server_is_named_within_ten_seconds_without_its_password(server, call):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        host = f"127.0.0.1:{closed.getsockname()[1]}"
    server(f"http://me:{SECRET.replace('/', '')}@{host}")
    message, seconds = error_of(call, "s3://photos/store")
    assert message == (
        f"S3 at http://{host} must answer for bucket 'photos'; there is no connection: Connection refused. "
        "Start it, or set AWS_ENDPOINT_URL to its address."
    )
    assert seconds < 10


def test_a_host_that_does_not_exist_is_named(server):
    server("http://no-such-host.invalid:9000")
    message, _ = error_of(storage.exists, "s3://photos/store")
    assert "its host no-such-host.invalid is not known" in message


@pytest.mark.slow  # 4 s, the limit of a connection
def test_a_server_that_takes_no_connection_is_named(server):
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        server(f"http://127.0.0.1:{full.getsockname()[1]}")
        message, seconds = error_of(storage.exists, "s3://photos/store")
    assert "it takes no connection in time" in message
    assert seconds < 10


def test_a_short_secret_leaves_the_words_as_they_are(server, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "t")
    server("http://127.0.0.1:9")
    message, _ = error_of(storage.exists, "s3://photos/store")
    assert "there is no connection: Connection refused." in message


def test_an_error_of_other_requests_by_boto3_is_told_too(server):
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import EndpointConnectionError

    address = server("http://127.0.0.1:9")
    for error in (EndpointConnectionError(endpoint_url=address), S3UploadFailedError("no\nmore")):
        told = storage.unavailable(error)
        assert told is not None
        assert str(told).startswith(f"S3 at {address} must answer; ")
    assert storage.unavailable(ValueError("AWS Error")) is None
    assert storage.unavailable(OSError(28, "No space left on device")) is None
    assert storage.unavailable(TimeoutError("no complete answer within 1 s")) is None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_silent_server_is_given_up_after_the_time_that_was_set(server, one_second, scheme):
    with serving(silent) as address:
        server(address.replace("http", scheme))
        message, seconds = error_of(storage.exists, "s3://photos/store")
    assert "it gave no complete answer within 1 s" in message
    assert "DML_S3_TIMEOUT_S, now 1," in message
    assert seconds < 5


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9000", "localhost", "s3://host", "http://", "http://host:port"]
)
def test_an_address_that_is_no_url_is_refused_before_any_request(server, address):
    server(address)
    with pytest.raises(InvalidSetting, match=r"AWS_ENDPOINT_URL must be http://HOST:PORT or https://"):
        storage.exists("s3://photos/store")


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "0.5", "nan", "inf", "1e9"])
def test_the_time_must_be_seconds(server, monkeypatch, seconds):
    server("http://127.0.0.1:9")
    monkeypatch.setenv("DML_S3_TIMEOUT_S", seconds)
    with pytest.raises(InvalidSetting, match="DML_S3_TIMEOUT_S must be a number of seconds from 1 to 3600"):
        storage.exists("s3://photos/store")


def test_a_profile_that_does_not_exist_is_named(server, monkeypatch):
    server("http://127.0.0.1:9")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InvalidSetting, match=r"AWS_PROFILE must name a profile.*nobody"):
        storage.exists("s3://photos/store")


def test_half_of_the_credentials_is_refused_with_what_is_missing(relay, s3_store, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for call in (storage.exists, storage.ObjectFolder):
        message, _ = error_of(call, s3_store)
        assert "Partial credentials found" in message
        assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message


def test_a_bucket_is_asked_for_once_and_its_filesystem_kept_until_the_settings_change(
    relay, s3_store, monkeypatch
):
    first, _ = storage.filesystem(s3_store)
    connections = relay.num_connections
    again, path = storage.filesystem(f"{s3_store}/a#b")
    assert again is first
    assert path == f"{s3_store.removeprefix('s3://')}/a#b"
    assert relay.num_connections == connections
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert storage.filesystem(s3_store)[0] is not first


def test_arrow_is_told_the_address_the_region_and_the_time_and_so_is_a_worker(relay, s3_store, monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    filesystem = storage.filesystem(s3_store)[0]
    assert isinstance(filesystem, fs.S3FileSystem)
    told = pickle.loads(pickle.dumps(filesystem)).__reduce__()[1][0]
    assert (told["endpoint_override"], told["scheme"]) == (os.environ["AWS_ENDPOINT_URL"], "http")
    assert (told["region"], told["request_timeout"], told["connect_timeout"]) == ("eu-central-1", 5, 4)


def test_an_address_for_s3_alone_goes_before_the_one_for_all_services(relay, s3_store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert not storage.exists(f"{s3_store}/nothing")
    assert storage.list_etags(s3_store) == {}


@pytest.mark.parametrize(
    "lines",
    ["endpoint_url = {}", "services = own\n[services own]\ns3 =\n  endpoint_url = {}"],
    ids=["all", "s3"],
)
def test_both_clients_take_the_address_of_the_profile(relay, s3_store, monkeypatch, tmp_path, lines):
    address = os.environ["AWS_ENDPOINT_URL"]
    file = tmp_path / "config"
    file.write_text(f"[profile shop]\nregion = eu-north-1\n{lines.format(address)}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "shop")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    storage.write_bytes(f"{s3_store}/a", b"1")
    assert set(storage.list_etags(s3_store)) == {"a"}
    assert storage.filesystem(s3_store)[0].region == "eu-north-1"


def test_a_public_bucket_is_read_without_credentials_by_both_clients(relay, s3_store, monkeypatch):
    storage.write_bytes(f"{s3_store}/a", b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert storage.read_bytes(f"{s3_store}/a") == b"1"
    assert set(storage.list_etags(s3_store)) == {"a"}


def test_a_server_whose_every_answer_is_slow_serves_all_the_same(relay, s3_store, monkeypatch):
    storage.write_bytes(f"{s3_store}/a", b"1")
    monkeypatch.setenv("DML_S3_TIMEOUT_S", "2")
    relay.delay_s = 0.8
    start = time.monotonic()
    assert storage.read_bytes(f"{s3_store}/a") == b"1"
    assert time.monotonic() - start > 2.3  # three requests, and the limit of one is 2 s


@pytest.mark.slow  # 5 s
def test_an_upload_takes_as_long_as_the_line_needs(relay, s3_store, monkeypatch):
    monkeypatch.setenv("DML_S3_TIMEOUT_S", "2")
    storage.exists(s3_store)
    content = os.urandom(1_000_000)
    relay.upload_bytes_per_s = 250_000
    start = time.monotonic()
    storage.write_bytes(f"{s3_store}/a", content)
    assert time.monotonic() - start > 3
    relay.upload_bytes_per_s = 0
    assert storage.read_bytes(f"{s3_store}/a") == content


@pytest.mark.slow  # 9 s: three tries of 2 s each, and the pauses between them
def test_a_server_that_falls_silent_in_the_middle_is_given_up_after_three_tries(relay, s3_store, monkeypatch):
    monkeypatch.setenv("DML_S3_TIMEOUT_S", "2")
    storage.write_bytes(f"{s3_store}/a", b"1")
    relay.is_silent = True
    message, seconds = error_of(storage.read_bytes, f"{s3_store}/a")
    assert "a request made no progress for 2 s, in each of 3 tries" in message
    assert seconds < 20


def test_a_server_that_dies_in_a_long_read_is_unavailable_and_the_file_not_damaged(relay, s3_store):
    uri = f"{s3_store}/table.parquet"
    filesystem, path = storage.filesystem(uri)
    parquet.write_table(pa.table({"a": list(range(100_000))}), path, filesystem=filesystem)
    relay.cut_after_bytes = 50_000
    message, _ = error_of(storage.read_bytes, uri)
    assert f"S3 at {os.environ['AWS_ENDPOINT_URL']} must answer for bucket" in message
    assert "the connection broke" in message

    def read():
        with storage.reading(uri, "Make it again."):
            parquet.read_table(path, filesystem=filesystem)

    message, _ = error_of(read)
    assert "the connection broke" in message


def test_boto3_names_a_server_that_dies_in_a_read(relay, s3_store):
    uri = f"{s3_store}/pointer.json"
    storage.update_checked(uri, lambda _: {"long": "x" * 100_000})
    relay.cut_after_bytes = 50_000
    message, _ = error_of(storage.update_checked, uri, dict)
    assert "the connection broke: " in message

"""Every verb says in one line, with exit status 2, that the store's S3 server does not answer."""

import socket

import prefect.logging  # noqa: F401 - its handler keeps the stream it finds, which must outlive a test
import pytest

from tests.faulty_server import refusing, serving

VERBS = [
    "ingest glyphs:classes=4,per_class=4 --name shop",
    "datasets",
    "correct shop a --label b",
    "corrections shop",
    "enrol shop a QUERY",
    "calibrate shop",
    "identify QUERY --index shop",
    "compare QUERY QUERY --index shop",
    "train shop",
    "index shop --model shop",
    "indexes",
    "report shop",
    "reindex shop",
    "search QUERY --index shop",
    "export shop --to npy --out FOLDER",
    "verify",
    "gc",
    "rm dataset shop",
    "rollback index shop",
    "forget shop a",
    "vectors",
    "serve --port 0",
]


@pytest.fixture
def clients(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return lambda address: monkeypatch.setenv("AWS_ENDPOINT_URL", address)


def words(verb, query, tmp_path):
    return [{"QUERY": query, "FOLDER": str(tmp_path / "folder")}.get(word, word) for word in verb.split()]


@pytest.mark.slow  # 50 s: each looks for the server for a second
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.partition(" ")[0])
def test_a_verb_names_a_dead_server(dml, clients, query, tmp_path, verb):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    clients(address)
    done = dml(*words(verb, query, tmp_path), "--store", "s3://photos/store")
    assert done.status == 2, done.err
    error = done.err.splitlines()[-1]
    assert error.startswith(f"error: S3 at {address} must answer for bucket 'photos'; there is no connection")


def test_json_holds_the_refusal(dml, clients):
    with serving(refusing(404, "NoSuchBucket", "The specified bucket does not exist")) as address:
        clients(address)
        done = dml("datasets", "--store", "s3://photos/store", "--json")
    assert done.status == 2
    assert done.json == {
        "error": f"S3 at {address} must answer for bucket 'photos'; it refuses the request, NoSuchBucket: "
        "The specified bucket does not exist. Make the bucket, or name another."
    }

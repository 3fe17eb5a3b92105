"""Milvus does what every engine does: its own lite server, in an environment of its own, over gRPC."""

import itertools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dml.config import IndexConfig
from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting, MissingArtifact, Unreachable
from dml.retrieval.build import build_index
from dml.retrieval.engines.milvus import CONNECT_TIMEOUT_S, MilvusEngine
from dml.retrieval.engines.milvus_address import MilvusAddress, collection_name
from dml.retrieval.engines.milvus_columns import MilvusColumns
from dml.retrieval.engines.milvus_expression import write_expression, write_ids
from dml.retrieval.index import publish_index
from tests.ports import free_port
from tests.retrieval.engines.conformance import FILTERS, ITEMS, NASTY, ROWS, EngineConformance, compare

ROOT = Path(__file__).parents[3]
UV = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".cache" / "uv" / "bin"))
_collections = (f"things_{number}" for number in itertools.count())


def run(command: list[str | Path]) -> None:
    inherited = {"PYTHONPATH", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The programs of an environment of Milvus' lite server; its faiss-cpu must not meet ours."""
    assert UV is not None, "needs uv, which `make setup` downloads where it is not on the PATH"
    folder = tmp_path_factory.mktemp("milvus") / "environment"
    run([UV, "venv", "--python", sys.executable, folder])
    run(
        [
            UV,
            "pip",
            "install",
            "--python",
            folder / "bin" / "python",
            "milvus-lite==3.2.2",
            f"pymilvus=={version('pymilvus')}",
        ]
    )
    yield folder / "bin"
    shutil.rmtree(folder)


class Server:
    """A lite server on a port of this machine."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.address = MilvusAddress("127.0.0.1", free_port())
        command = [programs / "milvus-lite", "server", "--data-dir", folder / "data"]
        command += ["--host", "127.0.0.1", "--port", str(self.address.port)]
        self._log = (folder / "server.log").open("w")
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(command, env=inherited, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 240
        while not self._answers():
            assert self._process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server takes no connection"
            time.sleep(0.1)

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.address.port)) == 0

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def address(environment, tmp_path_factory):
    server = Server(environment, tmp_path_factory.mktemp("server"))
    yield server.address
    server.kill()


@pytest.fixture
def engine(address):
    engine = MilvusEngine(address, next(_collections))
    yield engine
    engine.drop()
    engine.close()


@pytest.fixture(scope="module")
def loaded(address, table):
    engine = MilvusEngine(address, next(_collections))
    engine.load(table)
    return engine


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestMilvus(EngineConformance):
    def test_a_load_that_was_killed_leaves_nothing_to_find_and_is_made_again(self, address, table, vectors):
        name = next(_collections)
        MilvusEngine(address, f"{name}_loading").create(table)
        engine = MilvusEngine(address, name)
        with pytest.raises(MissingArtifact, match="must be loaded"):
            engine.search(vectors[:1], 3)
        assert engine.load(table) == ROWS
        assert engine.count() == ROWS

    def test_other_vectors_than_the_indexes_are_refused(self, loaded, table):
        loaded.require_table(table)
        with pytest.raises(IncompatibleArtifact, match="must hold the vectors of"):
            loaded.require_table(table.model_copy(update={"fingerprint": "0" * 64}))

    @pytest.mark.parametrize("index_type", ["HNSW", "IVF_FLAT"])
    def test_an_index_type_of_milvus_is_used_and_named_in_the_plan(self, address, table, vectors, index_type):
        engine = MilvusEngine(address, next(_collections), index_type=index_type)
        engine.load(table)
        found = engine.search(vectors[:5], 1)
        assert index_type in found.plan
        assert [answers[0].similarity for answers in found.answers] == pytest.approx([1.0] * 5, abs=1e-5)
        engine.drop()

    def test_a_text_that_milvus_cannot_hold_is_refused_before_anything_is_found(self, loaded, vectors):
        items = pa.Table.from_pylist([{**ITEMS[0], "position": 0, "note": "x" * 70_000}])
        with pytest.raises(InvalidData, match="at most 65535 bytes"):
            loaded.upsert(items, vectors[:1])

    def test_a_server_that_dies_is_named_and_not_tried_again_for_minutes(
        self, environment, table, vectors, tmp_path
    ):
        server = Server(environment, tmp_path)
        engine = MilvusEngine(server.address, "things")
        engine.load(table)
        server.kill()
        begun = time.monotonic()
        with pytest.raises(Unreachable, match=f"127.0.0.1:{server.address.port}"):
            engine.search(vectors[:1], 3)
        assert time.monotonic() - begun < 60


def dml(store: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dml.cli", *words, "--store", store, "--json"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_index_is_loaded_and_searched_by_the_same_filters_from_the_command_line(
    address, table, vectors, tmp_path
):
    store = table.uri.partition("/vectors/")[0]
    publish_index(store, build_index(store, "things", table, IndexConfig()))
    np.save(tmp_path / "query.npy", vectors[3])
    engine = ["--engine", f"milvus://{address}"]
    query = ["search", "things", "--vector", str(tmp_path / "query.npy"), "-k", "3", "--where", "age < 30"]
    loaded = json.loads(dml(store, "load", "things", *engine).stdout)
    assert (loaded["rows"], loaded["engine"]) == (ROWS, str(address))
    answers = json.loads(dml(store, *query, *engine).stdout)["answers"]
    expected = MilvusEngine(address, loaded["collection"]).search(vectors[3:4], 3, "age < 30").answers[0]
    assert [each["id"] for each in answers] == [each.id for each in expected]
    assert all(each["attributes"]["age"] < 30 for each in answers)


@pytest.fixture
def silent_server():
    """The port of a server that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def web_server():
    """The port of a web server, which is no Milvus."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                client.close()

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]


def test_a_dead_server_is_named(caplog):
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9;"):
        MilvusEngine(MilvusAddress("127.0.0.1", 9), "things", connect_timeout_s=0.5)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", ["silent_server", "web_server"])
def test_a_server_of_another_kind_is_named(kind, request):
    pytest.importorskip("pymilvus")  # whose import takes seconds, which must not count
    port = request.getfixturevalue(kind)
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{port}"):
        MilvusEngine(MilvusAddress("127.0.0.1", port), "things", connect_timeout_s=0.5)
    assert time.monotonic() - begun < CONNECT_TIMEOUT_S


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("milvus://localhost", "localhost:19530"),
        ("milvus://10.0.0.1:1234/faces", "10.0.0.1:1234/faces"),
        ("milvus://[::1]:1234", "[::1]:1234"),
        ("milvus+tls://host:443", "host:443"),
    ],
)
def test_an_address_is_read(text, shown):
    assert str(MilvusAddress.parse(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:19530",
        "http://localhost",
        "milvus://",
        "milvus://h:port",
        "milvus://h/a/b",
        "milvus://h?x=1",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InvalidSetting, match="must be milvus://HOST:PORT"):
        MilvusAddress.parse(text)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(InvalidSetting, match="DML_MILVUS_TOKEN") as refused:
        MilvusAddress.parse("milvus://me:secret@host:1")
    assert "secret" not in str(refused.value)


def test_index_versions_have_collections_by_milvus_rules():
    assert collection_name("shop-2@0123456789ab") == "dml_shop_2_0123456789ab"


TYPES = {
    "id": "string",
    "label": "string",
    "note": "string",
    "age": "int64",
    "big": "int64",
    "weight": "double",
}
COLUMNS = MilvusColumns(
    {**TYPES, "vip": "bool", "in": "int64", "größe": "double", "seen": "string"},
    {"seen": pa.timestamp("us", "UTC")},
)


def test_a_column_never_is_a_word_of_the_language():
    columns = MilvusColumns({"id": "string", "in": "int64", "größe": "double", "a b": "bool"})
    assert [column.field for column in columns.values()] == ["id", "c1_in", "c2_gr__e", "c3_a_b"]


def test_a_collection_says_its_columns():
    assert dict(MilvusColumns.from_json(COLUMNS.to_json())) == dict(COLUMNS)


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("equal", '(c1_label == "class 3")'),
        ("unequal, also where missing", '(not (c1_label == "class 3") or c1_label is null)'),
        ("not unequal", '(c1_label == "class 3")'),
        ("not between", "(not (c3_age >= 5 and c3_age <= 20) or c3_age is null)"),
        ("not missing", "(c5_weight is not null)"),
        ("not or", "((not (c3_age < 30) or c3_age is null) and (c1_label is not null))"),
        ("not false", "(not (c6_vip == false) or c6_vip is null)"),
    ],
)
def test_not_is_written_out_at_the_comparisons(name, expression):
    assert write_expression(FILTERS[name], COLUMNS) == expression


@pytest.mark.parametrize("value", NASTY)
def test_a_text_is_one_literal(value):
    """What follows each backslash is taken as it is; no quote but the last ends the text."""
    written = write_expression(compare("note", "=", value), COLUMNS)
    assert written.startswith('(c2_note == "')
    assert written.endswith('")')
    body = iter(written.removeprefix('(c2_note == "').removesuffix('")'))
    back = {"n": "\n", "r": "\r", "t": "\t"}
    read = ""
    for character in body:
        assert character not in '"\n\r'
        if character == "\\":
            escaped = next(body)
            character = back.get(escaped, escaped)
        read += character
    assert read == value


def test_times_are_compared_as_times():
    expression = write_expression(compare("seen", ">=", "1970-01-01T00:00:01"), COLUMNS)
    assert expression == "(c9_seen_time >= 1000000)"


def test_ids_are_literals():
    assert write_ids(['a"] or true or id in ["', "b"]) == r'id in ["a\"] or true or id in [\"", "b"]'


def test_numbers_keep_their_values():
    values = np.random.default_rng(0).standard_normal(100) * 10.0 ** np.arange(-50, 50)
    for value in values.tolist():
        written = write_expression(compare("weight", "<", value), COLUMNS)
        assert float(written.removeprefix("(c5_weight < ").removesuffix(")")) == value

"""The files of an index version: whole, as they were published, or not opened."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dml import storage
from dml.config import IndexConfig
from dml.errors import CorruptArtifact, IncompatibleArtifact
from dml.retrieval.build import build_index
from dml.retrieval.bundle import CALIBRATION_FILE, open_bundle, read_calibration
from dml.retrieval.bundle_index import BundleIndex
from dml.retrieval.index import find_index, publish_index
from tests.embedding.parts import ROWS, unit_vectors

CONFIG = IndexConfig(factory="IVF4,SQ8")
NUM_COLUMNS = 9  # id, label, split, width, height, and four attributes
FILES = [
    "manifest.json",
    "index.faiss",
    "vectors.faiss",
    "items.arrow",
    *(f"attributes/{number:05d}.arrow" for number in range(NUM_COLUMNS)),
]
OPTIONAL = {"calibration.json", "operating_curve.json"}
KILLED_AT = """
import os, signal, sys
from dml.config import IndexConfig
from dml.progress import Ticker
from dml.refs import EmbeddingsRef
from dml.retrieval.build import build_index

def begin(ticker, part, units="", total=None, go_on=Ticker.begin):
    if part == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    go_on(ticker, part, units, total)

Ticker.begin = begin
embeddings = EmbeddingsRef.model_validate_json(sys.argv[2])
build_index(sys.argv[1], "shelves", embeddings, IndexConfig(factory="IVF4,SQ8"))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory, embeddings):
    return build_index(str(tmp_path_factory.mktemp("bundle")), "shelves", embeddings, CONFIG)


@pytest.fixture
def copied(built, tmp_path):
    """Of the version, at a place of its own."""
    shutil.copytree(built.uri, tmp_path / "version")
    ref = built.model_copy(update={"uri": str(tmp_path / "version")})
    open_bundle(ref)
    return ref


def answers_of(ref):
    queries = unit_vectors(4, 16, seed=3)
    result = BundleIndex(ref).search(
        queries, 5, embedder=ref.embeddings.embedder.fingerprint, where="year > 1995"
    )
    return [[answer.id for answer in answers] for answers in result.answers]


def test_the_files_of_a_version_are_these(built):
    published = {path.relative_to(built.uri).as_posix() for path in Path(built.uri).rglob("*.*")}
    assert published - OPTIONAL == set(FILES)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_noticed_at_opening(copied, name, share):
    path = Path(copied.uri, name)
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=name):
        open_bundle(copied)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_truncated_or_missing_file_is_noticed_at_opening(copied, name):
    path = Path(copied.uri, name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifact, match=name):
        open_bundle(copied)
    path.unlink()
    with pytest.raises(CorruptArtifact, match=name):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["attributes/00099.arrow", "more.txt"])
def test_a_file_that_was_not_published_is_not_read(copied, name):
    Path(copied.uri, name).write_bytes(b"not of this version")
    assert answers_of(copied) == answers_of(copied)
    assert len(open_bundle(copied).items.table) == ROWS


@pytest.mark.parametrize("opens", [open_bundle, read_calibration])
@pytest.mark.parametrize(
    ("description", "unknown", "message"),
    [({"format": 3}, {}, "must have format 4 .*; .* has 3. Build it again: dml reindex shelves"),
     ({}, {"timed_us": 1}, "differs in timed_us. Build it again: dml reindex shelves")],
)  # fmt: skip
def test_an_index_of_another_version_of_this_program_is_refused_with_what_to_do(
    copied, tmp_path, opens, description, unknown, message
):
    manifest = storage.read_manifest(copied.uri)
    uri = str(tmp_path / "older")
    with storage.staged(uri) as staged:
        for name in manifest["files"]:
            Path(staged, name).parent.mkdir(exist_ok=True)
            shutil.copy(Path(copied.uri, name), Path(staged, name))
        measured = json.loads(Path(copied.uri, CALIBRATION_FILE).read_text())
        Path(staged, CALIBRATION_FILE).write_text(json.dumps(measured | unknown))
        storage.publish(staged, uri, {**manifest, **description})
    with pytest.raises(IncompatibleArtifact, match=message):
        opens(copied.model_copy(update={"uri": uri}))


def test_two_builders_at_once_make_one_version(tmp_path, embeddings):
    store = str(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        refs = list(pool.map(lambda _: build_index(store, "shelves", embeddings, CONFIG), range(2)))
    assert refs[0] == refs[1]
    storage.verify(refs[0].uri)
    assert os.listdir(f"{store}/indexes/shelves") == [refs[0].version]


def test_the_vectors_of_a_search_by_id_are_those_of_the_item(built, embeddings):
    index = BundleIndex(built)
    ids = index.items["id"].to_pylist()
    np.testing.assert_allclose(
        index.vectors_of([ids[7], ids[7], ids[119]]),
        open_bundle(built).vectors.take(np.array([7, 7, 119])),
        atol=1e-6,
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", ["reading vectors", "filling", "indexing attributes", "publishing"])
def test_a_killed_build_leaves_nothing_half(tmp_path, embeddings, built, part):
    store = str(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT, store, embeddings.model_dump_json(), part], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert storage.list_versions(f"{store}/indexes/shelves") == []
    publish_index(store, build_index(store, "shelves", embeddings, CONFIG))
    again = find_index(store, "shelves")
    storage.verify(again.uri)
    for name in FILES[1:]:
        assert Path(again.uri, name).read_bytes() == Path(built.uri, name).read_bytes()

"""Building an index: equal inputs give one version, whole or not at all, and its recall is measured."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from dml import storage
from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.embedding.table import read_embeddings
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidSetting, MissingArtifact
from dml.retrieval.build import build_index
from dml.retrieval.bundle import CALIBRATION_FILE, open_bundle, read_calibration
from dml.retrieval.index import find_index, list_indexes, publish_index
from dml.retrieval.shards import open_index
from dml.retrieval.sizing import index_for
from tests.embedding.parts import ROWS, table_of, unit_vectors

KILLED_BEFORE_PUBLISHING = """
import os, signal, sys
from dml import storage
from dml.config import IndexConfig
from dml.refs import EmbeddingsRef
from dml.retrieval.bundle import open_bundle
from dml.retrieval.build import build_index

storage.publish = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
build_index(sys.argv[1], "shelves", EmbeddingsRef.model_validate_json(sys.argv[2]), IndexConfig())
"""


@pytest.fixture
def place(tmp_path):
    """A store of indexes alone."""
    return str(tmp_path / "indexes-only")


def test_the_same_inputs_give_the_same_version_built_once(place, embeddings):
    first = build_index(place, "shelves", embeddings, IndexConfig())
    modified = storage.read_manifest(first.uri)
    assert build_index(place, "shelves", embeddings, IndexConfig()) == first
    assert storage.read_manifest(first.uri) == modified
    assert storage.list_names(f"{place}/indexes/shelves") == [first.version]
    assert (first.factory, first.rows, first.recall) == ("Flat", ROWS, 1.0)
    storage.verify(first.uri)


def test_vectors_of_one_dimension_are_indexed_without_a_factory_string(tmp_path):
    np.save(tmp_path / "signs.npy", np.array([[3], [-2], [0.5], [-1]], dtype=np.float32))
    table = import_vectors(str(tmp_path / "store"), "signs", tmp_path / "signs.npy").embeddings
    ref = build_index(str(tmp_path / "store"), "signs", table, IndexConfig())
    assert (ref.factory, table.dim, ref.recall) == ("Flat", 1, 1.0)
    query = np.array([[1]], dtype=np.float32)
    (answers,) = open_index(ref).search(query, 4, embedder=table.embedder.fingerprint).answers
    assert [answer.similarity for answer in answers] == [1, 1, -1, -1]


@pytest.mark.parametrize("config", [IndexConfig(factory="HNSW8"), IndexConfig(recall_queries=9)])
def test_other_settings_give_another_version(place, embeddings, config):
    plain = build_index(place, "shelves", embeddings, IndexConfig())
    assert build_index(place, "shelves", embeddings, config).version != plain.version


def test_building_publishes_nothing(place, embeddings):
    ref = build_index(place, "shelves", embeddings, IndexConfig())
    assert list_indexes(place) == []
    with pytest.raises(MissingArtifact, match=ref.version):
        find_index(place, "shelves")
    assert find_index(place, f"shelves@{ref.version}") == ref
    publish_index(place, ref)
    assert list_indexes(place) == [ref] == [find_index(place, "shelves")]


def test_killed_right_before_publishing_the_former_index_stays_and_a_retry_ends_the_same(
    place, embeddings, store, package, dataset
):
    former = build_index(
        place, "shelves", table_of(store, package, dataset, unit_vectors(ROWS, 16, 1)), IndexConfig()
    )
    publish_index(place, former)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_PUBLISHING, place, embeddings.model_dump_json()], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert find_index(place, "shelves") == former
    assert storage.list_names(f"{place}/indexes/shelves") == sorted([former.version, storage.POINTER])
    retried = build_index(place, "shelves", embeddings, IndexConfig())
    publish_index(place, retried)
    undisturbed = build_index(f"{place}-2", "shelves", embeddings, IndexConfig())
    assert find_index(place, "shelves") == retried
    made = [storage.read_manifest(ref.uri) for ref in (retried, undisturbed)]
    assert all(manifest.pop("created") for manifest in made)
    assert all(manifest["files"].pop(CALIBRATION_FILE) for manifest in made), "times are never the same"
    assert made[0] == made[1]


def test_an_index_that_was_not_built_cannot_be_published(place, embeddings):
    ref = build_index(place, "shelves", embeddings, IndexConfig())
    storage.delete(ref.uri)
    with pytest.raises(MissingArtifact):
        publish_index(place, ref)
    assert list_indexes(place) == []


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as POSIX does")
@pytest.mark.parametrize("limit", [100, 5_000, 9_000], ids=["index", "index, later", "items"])
def test_a_disk_that_takes_no_more_is_left_as_it_was(place, embeddings, limit):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            build_index(place, "shelves", embeddings, IndexConfig())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(f"{place}/indexes/shelves") == [], "also no staging folder"
    assert build_index(place, "shelves", embeddings, IndexConfig()).rows == ROWS


def test_probes_are_raised_until_the_recall_is_there(place, store, package, dataset):
    import faiss

    table = table_of(store, package, dataset, unit_vectors(ROWS, 32, 2))
    by_hand = build_index(place, "few", table, IndexConfig(factory="IVF40,Flat", num_probes=1))
    chosen = build_index(place, "enough", table, IndexConfig(factory="IVF40,Flat"))
    assert by_hand.recall < 0.6
    assert chosen.recall >= 0.95
    probes = [faiss.read_index(f"{ref.uri}/index.faiss").nprobe for ref in (by_hand, chosen)]
    assert probes[0] == 1
    assert probes[1] > 8, "raised from the fewest"


@pytest.mark.parametrize(("rows", "factory"), [(1, "Flat"), (99_999, "Flat"), (200_000, "HNSW32")])
def test_auto_is_exact_while_that_is_fast(rows, factory):
    planned = index_for(rows, 128, recall=0.95, latency_ms=5, memory=10**10, filters=0)
    assert planned.factory == factory


def test_auto_takes_lists_where_items_have_attributes_to_filter_by():
    planned = index_for(200_000, 128, recall=0.95, latency_ms=5, memory=10**10, filters=2)
    assert planned.factory == "IVF2048,Flat"


def test_another_recall_target_is_another_version_and_is_reached(place, store, package, dataset):
    table = table_of(store, package, dataset, unit_vectors(ROWS, 32, 2))
    refs = [
        build_index(place, "targets", table, IndexConfig(factory="IVF40,Flat", recall=recall))
        for recall in (0.6, 0.9)
    ]
    assert refs[0].version != refs[1].version
    assert refs[0].recall >= 0.6
    assert refs[1].recall >= 0.9


def test_the_operating_curve_is_kept_beside_the_index(place, store, package, dataset):
    table = table_of(store, package, dataset, unit_vectors(ROWS, 32, 2))
    ref = build_index(place, "measured", table, IndexConfig(factory="IVF40,Flat"))
    curve = read_calibration(ref).operating_curve
    assert curve is not None
    assert curve.chosen.recall == ref.recall
    assert curve.chosen.mate_at_1 is not None, "the items have labels"
    assert curve.memory_bytes == os.path.getsize(f"{ref.uri}/index.faiss")


def test_codes_are_searched_with_candidates_compared_in_full(place, store, package, dataset):
    table = table_of(store, package, dataset, unit_vectors(ROWS, 32, 2))
    ref = build_index(place, "codes", table, IndexConfig(factory="IVF4,PQ8x4fs", recall=0.9))
    curve = read_calibration(ref).operating_curve
    assert curve is not None
    assert curve.k_factor > 1
    index = open_index(ref)
    exact = build_index(place, "exact", table, IndexConfig())
    queries = unit_vectors(60, 32, 3)
    found, truth = (
        each.search(queries, 10, embedder=table.embedder.fingerprint).answers
        for each in (index, open_index(exact))
    )
    shares = [
        len({answer.id for answer in ours} & {answer.id for answer in theirs}) / 10
        for ours, theirs in zip(found, truth, strict=True)
    ]
    assert np.mean(shares) > 0.85
    similarity = {answer.id: answer.similarity for answer in truth[0]}
    for answer in found[0]:
        assert answer.similarity == pytest.approx(similarity.get(answer.id, answer.similarity), abs=1e-5)


@pytest.mark.parametrize(("factory", "lists"), [("Flat", 1), ("auto", 1), ("HNSW8", 1), ("IVF4,Flat", 4)])
def test_more_probes_than_there_are_lists_are_refused(place, embeddings, factory, lists):
    config = IndexConfig(factory=factory, num_probes=lists + 1)
    with pytest.raises(
        InvalidSetting, match=rf"at most the number of lists, {lists} in .*; got {lists + 1}\."
    ):
        build_index(place, "shelves", embeddings, config)
    assert build_index(place, "shelves", embeddings, config.model_copy(update={"num_probes": lists}))


@pytest.mark.parametrize("ignored", [{"latency_ms": 1}, {"memory_gb": 8}], ids=str)
def test_a_bound_that_a_given_factory_would_ignore_is_refused(ignored):
    with pytest.raises(ValueError, match=r"must be left out beside a factory, since only auto chooses"):
        IndexConfig(factory="Flat", **ignored)
    assert IndexConfig(**ignored)


@pytest.mark.parametrize(
    "factory", ["Flt", "IVF500,Flat", "LSH", "IDMap,Flat", "IVF0,Flat", "HNSW8_2+PQ4", ""]
)
def test_a_factory_that_cannot_be_followed_is_refused(place, embeddings, factory):
    with pytest.raises(InvalidSetting, match=r"Flat|factory"):
        build_index(place, "shelves", embeddings, IndexConfig(factory=factory))
    assert storage.list_names(f"{place}/indexes/shelves") == []


@pytest.mark.parametrize(
    ("factory", "what"),
    [
        ("HNSW0", "2 to 512 links of a graph; got 0"),
        ("HNSW99999999", "2 to 512 links of a graph"),
        ("IVF4_HNSW1,Flat", "2 to 512 links of a graph; got 1"),
        ("NSG2", "4 to 512 links of a graph"),
        ("PQ4x0", "1 to 16 bits of a code; got 0"),
        ("IVF999999999,Flat", "has 999999999 lists, more than the"),
    ],
)
def test_numbers_by_which_faiss_would_end_the_process_are_refused(place, embeddings, factory, what):
    with pytest.raises(InvalidSetting, match=what):
        build_index(place, "shelves", embeddings, IndexConfig(factory=factory))


@pytest.mark.parametrize(
    ("config", "files"),
    [
        (IndexConfig(), ["index.faiss"]),
        (IndexConfig(vectors="float16"), ["index.faiss"]),
        (IndexConfig(factory="IVF4,PQ4x4"), ["index.faiss", "vectors.faiss"]),
        (IndexConfig(factory="SQfp16"), ["index.faiss", "vectors.faiss"]),
        (IndexConfig(factory="HNSW8", vectors="float16"), ["index.faiss", "vectors.faiss"]),
    ],
)
def test_flat_vectors_are_stored_once_in_the_type_asked_for(place, embeddings, config, files):
    ref = build_index(place, "shelves", embeddings, config)
    assert [name for name in sorted(os.listdir(ref.uri)) if name.endswith(".faiss")] == files
    vectors = open_bundle(ref).vectors
    assert (vectors.dtype, vectors.rows) == (config.vectors, ROWS)
    np.testing.assert_allclose(vectors.take(np.arange(ROWS)), read_embeddings(embeddings).vectors, atol=1e-3)


def test_an_index_of_an_older_program_is_refused(place, embeddings):
    ref = build_index(place, "shelves", embeddings, IndexConfig())
    manifest = storage.read_manifest(ref.uri)
    storage.seal(
        ref.uri, {name: value for name, value in manifest.items() if name not in ("files", "format")}
    )
    with pytest.raises(IncompatibleArtifact, match="dml reindex shelves"):
        open_bundle(ref)


def test_a_table_of_other_rows_than_its_dataset_is_refused(place, embeddings, dataset):
    short = embeddings.model_copy(update={"rows": ROWS - 1})
    with pytest.raises(CorruptArtifact, match=str(ROWS)):
        build_index(place, "shelves", short, IndexConfig())


def test_a_missing_index_is_named_with_those_there_are(place, embeddings):
    publish_index(place, build_index(place, "shelves", embeddings, IndexConfig()))
    with pytest.raises(MissingArtifact, match="shelves"):
        find_index(place, "boards")

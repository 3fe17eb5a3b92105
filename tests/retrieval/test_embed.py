"""Embedding a dataset: one unit-length row per sample, after any number of crashes, and none made twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dml import storage
from dml.data.dataset import read_images
from dml.errors import IncompatibleArtifact, InvalidData, MissingArtifact
from dml.models.package import Package, load_package
from dml.retrieval.embed import embed
from dml.retrieval.table import KnownVectors, part_uris, read_embeddings, read_part
from tests.growing_cluster import growing_cluster
from tests.retrieval.parts import ROWS, ids_of, make_dataset, make_package

KILLED_AFTER_TWO = """
import os, signal, sys
from dml.models.package import find_package
from dml.data.dataset import find_dataset
from dml.retrieval.embed import embed

def progress(done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

store, package, dataset = sys.argv[1:]
embed(store, find_package(package), find_dataset(dataset, "shelves"), progress=progress)
"""


@pytest.fixture
def embedded_images(monkeypatch):
    """How many images went through a package, as a list of counts."""
    counts = []
    original = Package.embed

    def counting(self, images, **settings):
        counts.append(len(images))
        return original(self, images, **settings)

    monkeypatch.setattr(Package, "embed", counting)
    return counts


def test_every_row_has_the_vector_of_its_image(embeddings, dataset, package):
    table = read_embeddings(embeddings)
    images = read_images(dataset, range(ROWS))
    assert table.ids.to_pylist() == ids_of(dataset)
    np.testing.assert_allclose(table.vectors, load_package(package.uri).embed(images), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(table.vectors, axis=1), 1, atol=1e-5)


def test_the_parts_are_portable_parquet(embeddings):
    part = read_part(part_uris(embeddings.uri)[0], ["id", "sha256", "embedding"])
    assert str(part.schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    assert not part.schema.field("embedding").nullable
    storage.verify(embeddings.uri)


def test_a_finished_table_is_returned_at_once(store, embeddings, dataset, package, embedded_images):
    assert embed(store, package, dataset) == embeddings
    assert embedded_images == []


def test_a_run_killed_after_two_units_goes_on_with_the_third(
    embeddings, store, dataset, package, tmp_path, embedded_images
):
    other = str(tmp_path / "store")
    arguments = [other, package.uri, store]
    killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_TWO, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    uri = storage.join(other, "embeddings", Path(embeddings.uri).name)
    assert [Path(part).name for part in part_uris(uri)] == ["part-00000.parquet", "part-00001.parquet"]
    assert not storage.is_complete(uri)
    told = []
    resumed = embed(other, package, dataset, progress=lambda *step: told.append(step))
    assert embedded_images == [30, 30]
    assert told == [(3, 4), (4, 4)]
    assert resumed.fingerprint == embeddings.fingerprint
    files = [storage.read_manifest(ref.uri)["files"] for ref in (embeddings, resumed)]
    assert files[0] == files[1]


def test_a_part_that_was_cut_short_while_written_is_not_a_part(package, dataset, tmp_path, embedded_images):
    store = str(tmp_path)
    folder = Path(store, "embeddings", f"{package.version}-{dataset.version}")
    folder.mkdir(parents=True)
    (folder / ".part-00000.parquet.0123").write_bytes(b"half a part")
    table = read_embeddings(embed(store, package, dataset))
    assert len(set(table.ids.to_pylist())) == ROWS
    assert sum(embedded_images) == ROWS


def test_only_new_images_are_embedded(embeddings, package, tmp_path, embedded_images):
    store = str(tmp_path / "store")
    grown = make_dataset(tmp_path / "images", store, rows=ROWS + 7)
    reused = read_embeddings(embed(store, package, grown, previous=embeddings))
    assert sum(embedded_images) == 7
    anew = read_embeddings(embed(str(tmp_path / "other"), package, grown))
    assert reused.ids.equals(anew.ids)
    np.testing.assert_allclose(reused.vectors, anew.vectors, atol=1e-5)


def test_known_vectors_are_found_by_the_images_digest(embeddings):
    table, known = read_embeddings(embeddings), KnownVectors(embeddings)
    digests = read_part(part_uris(embeddings.uri)[2], ["sha256"])["sha256"]
    rows = known.rows_of(digests)
    assert rows.tolist() == list(range(60, 90))
    shuffled = np.array([88, -1, 3, 61])
    into = np.zeros((4, embeddings.dim), np.float32)
    known.copy(shuffled, into=into)
    np.testing.assert_array_equal(into[[0, 2, 3]], table.vectors[[88, 3, 61]])
    assert not into[1].any()


def test_vectors_of_another_package_are_not_reused(store, dataset, embeddings):
    other = make_package(store, seed=4)
    with pytest.raises(IncompatibleArtifact, match=embeddings.package.version):
        embed(store, other, dataset, previous=embeddings)


def test_vectors_that_are_no_numbers_are_never_written(package, dataset, tmp_path, monkeypatch):
    def broken(self, images, **settings):
        return np.full((len(images), self.ref.dim), np.nan, np.float32)

    monkeypatch.setattr(Package, "embed", broken)
    with pytest.raises(InvalidData, match="unit length"):
        embed(str(tmp_path), package, dataset)
    assert part_uris(str(tmp_path / "embeddings" / f"{package.version}-{dataset.version}")) == []


def test_a_part_with_other_samples_is_noticed(embeddings, package, dataset, tmp_path):
    folder = tmp_path / "embeddings" / Path(embeddings.uri).name
    folder.mkdir(parents=True)
    content = storage.read_bytes(part_uris(embeddings.uri)[1])
    (folder / "part-00000.parquet").write_bytes(content)
    with pytest.raises(InvalidData, match="part-00000"):
        embed(str(tmp_path), package, dataset)


def test_a_package_that_is_gone_is_named(store, dataset, package, tmp_path):
    gone = package.model_copy(update={"uri": str(tmp_path / "gone")})
    with pytest.raises(MissingArtifact, match="gone"):
        embed(str(tmp_path), gone, dataset)


def test_an_s3_store_holds_the_same_table(embeddings, package, dataset, s3_store):
    remote = embed(s3_store, package, dataset)
    assert storage.read_manifest(remote.uri)["files"] == storage.read_manifest(embeddings.uri)["files"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the actors' processes in /proc")
def test_a_killed_actor_changes_nothing(embeddings, package, dataset, tmp_path):
    killed = []

    def kill_one(done, total):
        if done == 1:
            killed.append(own_actors()[0])
            os.kill(killed[0], signal.SIGKILL)

    table = embed(str(tmp_path), package, dataset, num_workers=2, progress=kill_one)
    assert killed
    files = [storage.read_manifest(ref.uri)["files"].keys() for ref in (embeddings, table)]
    assert files[0] == files[1]
    found, expected = read_embeddings(table), read_embeddings(embeddings)
    assert found.ids.equals(expected.ids)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the cluster's processes in /proc")
def test_a_cluster_that_grows_from_no_gpu_embeds_on_the_one_it_starts(
    embeddings, package, dataset, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="dml.retrieval.embed")
    kinds = {"gpu": {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 1}}
    with growing_cluster(kinds) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        table = embed(str(tmp_path), package, dataset, num_workers=2)
    assert "up to 1 actors with a GPU each" in caplog.text
    assert read_embeddings(table).ids.equals(read_embeddings(embeddings).ids)


def own_actors():
    """Process ids of the embedding actors below this process."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # ended meanwhile

    def is_below_this(pid):
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [
        pid for pid, name in names.items() if b"ray::" in name and b"Actor" in name and is_below_this(pid)
    ]

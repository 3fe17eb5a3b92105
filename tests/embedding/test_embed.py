"""Embedding a dataset: one unit-length row per sample, after any number of crashes, and none made twice."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dml import storage
from dml.data.corrections import correct_label, remove_item
from dml.data.dataset import fragments, read_images, read_rows
from dml.embedding.embed import embed
from dml.embedding.table import KnownVectors, part_uris, read_embeddings, read_part
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidData, MissingArtifact
from dml.models.package import load_package, save_package
from tests.embedding.parts import (
    GREY,
    ROWS,
    embedded_in_this_process,
    ids_of,
    make_dataset,
    make_encoder,
    make_package,
    rows_of_fragments,
    table_of,
    unit_vectors,
)
from tests.growing_cluster import growing_cluster

KILLED_AFTER_TWO = """
import os, signal, sys
from dml.models.package import find_package
from dml.data.dataset import find_dataset
from dml.embedding.embed import embed

def progress(done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

store, package, dataset = sys.argv[1:]
embed(store, find_package(package), find_dataset(dataset, "shelves"), progress=progress)
"""


@pytest.fixture
def embedded_images():
    """How many images went through an encoder, as a list of counts."""
    with embedded_in_this_process() as counts:
        yield counts


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


def test_a_run_killed_after_two_parts_continues_with_the_third(
    embeddings, store, dataset, package, tmp_path, embedded_images
):
    other = str(tmp_path / "store")
    arguments = [other, package.uri, store]
    killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_TWO, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    uri = storage.join(other, "embeddings", Path(embeddings.uri).name)
    assert storage.list_names(uri) == ["part-00000.parquet", "part-00001.parquet"]
    assert not storage.is_complete(uri)
    reported = []
    resumed = embed(other, package, dataset, progress=lambda *step: reported.append(step))
    sizes = rows_of_fragments(dataset)
    assert embedded_images == sizes[2:]
    assert reported == [(done, len(sizes)) for done in range(3, len(sizes) + 1)]
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


def test_the_part_of_an_unchanged_fragment_is_that_of_the_table_before(
    embeddings, package, tmp_path, embedded_images
):
    store = str(tmp_path / "store")
    grown = make_dataset(tmp_path / "images", store)
    before = {Path(uri).read_bytes() for uri in part_uris(embeddings.uri)}
    remove_item(store, "shelves", "00003.png", who="ann")
    fewer = correct_label(store, "shelves", "00018.png", "class 2", who="ann")
    assert len(fragments(fewer)) == len(fragments(grown)) + 1
    reused = embed(store, package, fewer, previous=embeddings)
    changed = {Path(uri).read_bytes() for uri in part_uris(reused.uri)} - before
    assert 2 <= len(changed) <= 3, "those of the two rows' fragments, and the new one"
    assert sum(embedded_images) == 0
    table, anew = read_embeddings(reused), read_embeddings(embed(str(tmp_path / "other"), package, fewer))
    assert table.ids.equals(anew.ids)
    np.testing.assert_allclose(table.vectors, anew.vectors, atol=1e-5)


def test_a_damaged_part_of_the_table_before_is_not_copied(embeddings, package, tmp_path, embedded_images):
    store = str(tmp_path / "store")
    dataset = make_dataset(tmp_path / "images", store)
    table = embeddings.model_copy(update={"uri": str(shutil.copytree(embeddings.uri, tmp_path / "table"))})
    part = Path(part_uris(table.uri)[1])
    flip(part, part.stat().st_size // 2)
    made = embed(store, package, dataset, previous=table)
    assert sum(embedded_images) == rows_of_fragments(dataset)[1]
    np.testing.assert_allclose(read_embeddings(made).vectors, read_embeddings(embeddings).vectors, atol=1e-5)


def test_known_vectors_are_found_by_the_images_digest(embeddings, dataset):
    table, known = read_embeddings(embeddings), KnownVectors(embeddings)
    digests = read_part(part_uris(embeddings.uri)[2], ["sha256"])["sha256"]
    rows = known.rows_of(digests)
    sizes = rows_of_fragments(dataset)
    assert rows.tolist() == list(range(sum(sizes[:2]), sum(sizes[:3])))
    shuffled = np.array([88, -1, 3, 61])
    into = np.zeros((4, embeddings.dim), np.float32)
    known.copy(shuffled, into=into)
    np.testing.assert_array_equal(into[[0, 2, 3]], table.vectors[[88, 3, 61]])
    assert not into[1].any()


def test_vectors_of_another_package_are_not_reused(store, dataset, embeddings):
    other = make_package(store, seed=4)
    with pytest.raises(IncompatibleArtifact, match=embeddings.embedder.version):
        embed(store, other, dataset, previous=embeddings)


def test_vectors_that_are_no_numbers_are_never_written(dataset, tmp_path):
    encoder = make_encoder()
    torch.nn.init.constant_(encoder.head.weight, torch.nan)
    package = save_package(str(tmp_path), encoder, GREY)
    with pytest.raises(InvalidData, match=r"unit length; \d+ of \d+ .* first of image \S+\. Use"):
        embed(str(tmp_path), package, dataset)
    assert storage.list_names(f"{tmp_path}/embeddings/{package.version}-{dataset.version}") == []


def flip(path, offset, *, count=4):
    """Change some bytes of a file."""
    content = bytearray(Path(path).read_bytes())
    for place in range(offset, offset + count):
        content[place] ^= 0xFF
    Path(path).write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def flip_a_vector(path):
    flip(path, path.stat().st_size // 2)


def flip_the_footer(path):
    flip(path, path.stat().st_size - 12)


def swap(path):
    path.write_bytes(path.with_name("part-00001.parquet").read_bytes())


@pytest.mark.parametrize("damage", [empty, flip_a_vector, flip_the_footer, swap, Path.unlink])
def test_a_part_that_a_killed_run_left_damaged_is_made_again(
    embeddings, package, dataset, tmp_path, embedded_images, damage
):
    folder = tmp_path / "embeddings" / Path(embeddings.uri).name
    shutil.copytree(embeddings.uri, folder)
    (folder / storage.MANIFEST).unlink()
    damage(folder / "part-00002.parquet")
    repaired = embed(str(tmp_path), package, dataset)
    assert embedded_images == [rows_of_fragments(dataset)[2]], "the others are kept"
    files = [storage.read_manifest(ref.uri)["files"] for ref in (embeddings, repaired)]
    assert files[0] == files[1]


def test_a_finished_table_that_lost_a_part_is_made_whole_again(
    embeddings, package, dataset, tmp_path, embedded_images
):
    shutil.copytree(embeddings.uri, tmp_path / "embeddings" / Path(embeddings.uri).name)
    ref = embed(str(tmp_path), package, dataset)
    empty(Path(ref.uri, "part-00003.parquet"))
    assert embed(str(tmp_path), package, dataset) == ref
    assert embedded_images == [rows_of_fragments(dataset)[3]]
    assert len(read_embeddings(ref).ids) == ROWS


@pytest.mark.parametrize(
    "workers",
    [1, pytest.param(2, marks=[pytest.mark.ray, pytest.mark.slow])],
    ids=["here", "on ray's workers"],
)
def test_a_damaged_fragment_of_the_dataset_is_named(package, tmp_path, workers):
    store = str(tmp_path / "store")
    damaged = make_dataset(tmp_path / "images", store)
    fragment = Path(fragments(damaged)[2].uri)
    flip(fragment, fragment.stat().st_size // 2)
    with pytest.raises(CorruptArtifact, match=f"{fragment.name}.*Ingest"):
        embed(store, package, damaged, num_workers=workers)
    assert not storage.is_complete(f"{store}/embeddings/{package.version}-{damaged.version}")


def test_a_split_alone_is_embedded_and_copied_when_all_are(package, dataset, tmp_path, embedded_images):
    store = str(tmp_path)
    half = embed(store, package, dataset, split="test")
    assert sum(embedded_images) == half.rows == dataset.splits["test"].rows == ROWS // 2
    whole = embed(store, package, dataset)
    assert sum(embedded_images) == ROWS, "no image twice"
    assert half.fingerprint != whole.fingerprint
    assert half.uri.endswith("-test")
    table, of_whole = read_embeddings(half), read_embeddings(whole, split="test")
    rows = read_rows(dataset, split="test", columns=["id"])
    assert table.ids.to_pylist() == of_whole.ids.to_pylist() == rows["id"].to_pylist()
    assert table.positions.tolist() == of_whole.positions.tolist() == rows["position"].to_pylist()
    np.testing.assert_array_equal(table.vectors, of_whole.vectors)
    assert embed(store, package, dataset, split="train").rows == ROWS // 2
    assert sum(embedded_images) == ROWS


def test_a_table_of_one_split_does_not_answer_for_another(package, dataset, tmp_path):
    half = embed(str(tmp_path), package, dataset, split="test")
    with pytest.raises(IncompatibleArtifact, match=r"'train'.*'test'"):
        read_embeddings(half, split="train")
    with pytest.raises(InvalidData, match="'validation'"):
        embed(str(tmp_path), package, dataset, split="validation")


@pytest.mark.parametrize("first", [99_998, 99_999])
def test_the_order_of_parts_is_the_manifests_not_their_names(store, package, dataset, first):
    vectors = unit_vectors(ROWS, 16, 21)
    table = table_of(store, package, dataset, vectors, first_part=first)
    names = [Path(uri).name for uri in part_uris(table.uri)]
    assert names != sorted(names)
    np.testing.assert_array_equal(read_embeddings(table).vectors, vectors)
    test = read_embeddings(table, split="test")
    np.testing.assert_array_equal(test.vectors, vectors[test.positions])


def test_parts_in_another_order_than_the_fragments_are_never_read(store, package, dataset):
    table = table_of(store, package, dataset, unit_vectors(ROWS, 16, 22))
    manifest = storage.read_manifest(table.uri)
    manifest["parts"].reverse()
    storage.write_manifest(table.uri, manifest)
    for read in (read_embeddings, lambda ref: read_embeddings(ref, split="test")):
        with pytest.raises(CorruptArtifact, match="must have the samples of"):
            read(table)


@pytest.mark.parametrize("damage", [empty, flip_a_vector, flip_the_footer, Path.unlink])
def test_a_damaged_part_is_named_when_it_is_read(store, package, dataset, damage):
    number = [empty, flip_a_vector, flip_the_footer, Path.unlink].index(damage)
    table = table_of(store, package, dataset, unit_vectors(ROWS, 16, 30 + number))
    part = Path(part_uris(table.uri)[1])
    damage(part)
    with pytest.raises((CorruptArtifact, MissingArtifact), match=f"{part.name}.*made anew"):
        read_embeddings(table)


def test_a_missing_package_is_named(store, dataset, package, tmp_path):
    missing = package.model_copy(update={"uri": str(tmp_path / "gone")})
    with pytest.raises(MissingArtifact, match="gone"):
        embed(str(tmp_path), missing, dataset)


def test_an_s3_store_holds_the_same_table(embeddings, package, dataset, s3_store):
    remote = embed(s3_store, package, dataset)
    assert storage.read_manifest(remote.uri)["files"] == storage.read_manifest(embeddings.uri)["files"]


@pytest.mark.ray
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
    actual, expected = read_embeddings(table), read_embeddings(embeddings)
    assert actual.ids.equals(expected.ids)
    np.testing.assert_allclose(actual.vectors, expected.vectors, atol=1e-5)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the cluster's processes in /proc")
def test_a_cluster_that_grows_from_no_gpu_embeds_on_the_one_it_starts(
    embeddings, package, dataset, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="dml.embedding.embed")
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

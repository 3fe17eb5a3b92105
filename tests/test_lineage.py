"""Garbage collection, removal and integrity of a store's artefacts."""

import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import numpy as np
import pytest

from dml import storage
from dml.config import EncoderConfig, IndexConfig, PreprocessingConfig
from dml.data.dataset import find_dataset, list_datasets
from dml.data.forgotten import add_forgotten
from dml.embedding.embed import embed
from dml.embedding.external import import_vectors
from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact
from dml.integrity import check_store
from dml.lineage import (
    dependents,
    list_artifacts,
    remove,
    remove_index_versions,
    remove_named,
    unneeded,
)
from dml.models.encoder import Encoder
from dml.models.package import save_package
from dml.retrieval.build import build_index
from dml.retrieval.index import find_index, publish_index, rollback_index
from dml.retrieval.shards import open_index
from flows.verify import repaired
from tests.embedding.parts import make_dataset, make_package
from tests.embedding.vectors import random_vectors, write_npy
from tests.retrieval.in_shards import publish_in_shards

NO_GRACE = timedelta(0)


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "store")


def grow(store, folder, package, rows):
    """A dataset version with `rows` rows, embedded, indexed and published."""
    dataset = make_dataset(folder, store, rows=rows)
    ref = build_index(store, "shelves", embed(store, package, dataset), IndexConfig(), model="shelves/1")
    publish_index(store, ref)
    return ref


def collect(store, *registered, **options):
    options = {"grace": NO_GRACE, **options}
    return unneeded(store, [package.model_dump(mode="json") for package in registered], **options)


def make_old(path, days=2.0):
    then = time.time() - days * 24 * 3600
    for file in [path, *Path(path).rglob("*")]:
        os.utime(file, (then, then))


def test_superseded_versions_are_removed_with_all_that_only_they_needed(store, tmp_path):
    package = make_package(store)
    versions = [grow(store, tmp_path / "images", package, rows) for rows in (30, 60, 90)]
    removals = collect(store, package, keep=1)
    assert {r.uri for r in removals} == {
        uri for ref in versions[:2] for uri in (ref.uri, ref.embeddings.uri, ref.embeddings.items.uri)
    }
    remove(removals)
    assert find_index(store, "shelves") == versions[2]
    assert [ref.version for ref in list_datasets(store)] == [versions[2].embeddings.items.version]
    vectors = np.eye(16, dtype=np.float32)[:1]
    assert len(open_index(versions[2]).search(vectors, 3, embedder=package.fingerprint).answers[0]) == 3
    assert all(not checked.damaged for checked in check_store(store))
    assert collect(store, package, keep=1) == []


def test_of_the_pictures_folder_only_pictures_of_index_versions_that_are_gone_are_removed(store, tmp_path):
    ref = grow(store, tmp_path / "images", make_package(store), 30)
    folder = Path(store, "galleries")
    folder.mkdir()
    of_current, of_gone = f"{ref.name}-{ref.version}.png", f"{ref.name}-0123456789ab.png"
    kept = [of_current, f".{ref.name}.lock", "holiday.png", "notes.txt"]
    for name in (*kept, of_gone):
        (folder / name).write_bytes(b"")
    remove_index_versions(store, [])
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)


def test_the_requested_number_of_versions_is_kept(store, tmp_path):
    package = make_package(store)
    versions = [grow(store, tmp_path / "images", package, rows) for rows in (30, 60, 90)]
    removals = collect(store, package, keep=2)
    assert {r.uri for r in removals if r.kind == "index"} == {versions[0].uri}
    with pytest.raises(InvalidSetting, match="1 or more"):
        collect(store, keep=0)


def test_a_package_is_kept_while_it_is_registered_or_an_index_holds_its_vectors(store, tmp_path):
    used, registered, loose = (make_package(store, seed=seed) for seed in (1, 2, 3))
    grow(store, tmp_path / "images", used, 30)
    assert {r.uri for r in collect(store, registered)} == {loose.uri}


def test_new_artefacts_are_kept_for_the_grace_period(store):
    storage.mark_store(store)
    make_package(store)
    assert collect(store, grace=timedelta(hours=1)) == []
    assert len(collect(store)) == 1


@pytest.mark.parametrize(("minutes", "stays"), [(59, True), (61, False)])
def test_the_grace_period_is_an_hour_unless_another_is_wanted(store, minutes, stays):
    storage.mark_store(store)
    make_package(store)
    now = datetime.now(UTC) + timedelta(minutes=minutes)
    assert (unneeded(store, [], now=now) == []) == stays


def test_an_unfinished_run_keeps_its_dataset(store, tmp_path):
    first = make_dataset(tmp_path / "images", store, rows=30)
    make_dataset(tmp_path / "images", store, rows=60)
    run = storage.join(store, "runs", "run1")
    storage.write_json(storage.join(run, "dataset.json"), first.model_dump(mode="json"))
    storage.write_bytes(storage.join(run, "checkpoints", "step-00000001", "state"), b"1")
    assert collect(store, keep=1) == []
    storage.write_json(storage.join(run, "result.json"), {})
    assert {r.uri for r in collect(store, keep=1)} == {first.uri, storage.join(run, "checkpoints")}


def test_a_new_package_keeps_the_dataset_that_it_is_to_be_evaluated_on(store, tmp_path):
    """A nightly ingest may have superseded it while the package was trained."""
    first = make_dataset(tmp_path / "images", store, rows=30)
    encoder = Encoder(EncoderConfig(dim=16), channels=1, seed=3)
    package = save_package(
        store, encoder, PreprocessingConfig(color="L", mean=(0.5,), std=(0.25,)), dataset=first
    )
    make_dataset(tmp_path / "images", store, rows=60)
    assert collect(store, keep=1, grace=timedelta(hours=1)) == []
    assert {removal.uri for removal in collect(store, keep=1)} == {package.uri, first.uri}


def test_a_run_in_training_is_not_removed(store):
    storage.mark_store(store)
    run = storage.join(store, "runs", "mine")
    storage.write_json(storage.join(run, "experiment.json"), {})
    with storage.folder_lock(run), pytest.raises(InvalidSetting, match="must not be running"):
        remove_named(store, "run", "mine")
    assert remove_named(store, "run", "mine") == ["mine"]


def test_only_unfinished_files_older_than_a_day_are_abandoned(store, tmp_path):
    make_dataset(tmp_path / "images", store, rows=30)
    old, new = (storage.staging(storage.join(store, "datasets", "shelves", "v")) for _ in range(2))
    table = storage.make_folder(storage.join(store, "embeddings", "a-b"))
    storage.write_bytes(storage.join(table, "part"), b"1")
    temporary = Path(store, "datasets", f".current.json.{'0' * 32}")
    foreign = [
        Path(store, "datasets", ".git"),
        Path(store, "datasets", "shelves", ".venv"),
        Path(store, ".x"),
    ]
    for folder in foreign:
        (folder / "inside").mkdir(parents=True)
        make_old(folder)
    temporary.write_bytes(b"1")
    for path in (old, table, temporary):
        make_old(path)
    removals = collect(store)
    assert {r.uri for r in removals} == {old, table, str(temporary)}
    remove(removals)
    assert all(folder.exists() for folder in foreign)
    assert Path(new).exists()


def test_a_folder_that_is_not_a_store_is_refused(tmp_path):
    (tmp_path / "datasets" / "mine" / "v1").mkdir(parents=True)
    with pytest.raises(MissingArtifact, match=r"dml-store\.json"):
        collect(str(tmp_path))
    with pytest.raises(MissingArtifact, match=r"dml-store\.json"):
        remove_named(str(tmp_path), "dataset", "mine")


def test_removing_names_the_indexes_that_need_it(store, tmp_path):
    package = make_package(store)
    first, second = (grow(store, tmp_path / "images", package, rows) for rows in (30, 60))
    dataset = second.embeddings.items
    assert {str(user) for user in dependents(store, dataset.uri) if user.kind == "index"} == {str(second)}
    with pytest.raises(InvalidSetting, match=rf"{second}.*Remove them first"):
        remove_named(store, "dataset", "shelves")
    with pytest.raises(InvalidSetting, match="must not be the current version"):
        remove_named(store, "index", str(second))
    with pytest.raises(InvalidSetting, match="must start with a letter"):
        remove_named(store, "index", "../../x")
    with pytest.raises(MissingArtifact, match="must exist"):
        remove_named(store, "index", "other")
    assert remove_named(store, "index", str(first)) == [str(first)]
    assert remove_named(store, "index", "shelves") == [str(second)]
    forgotten = Path(store, "datasets", "shelves", "forgotten.json")
    storage.write_json(str(forgotten), {"ids": []})
    assert len(remove_named(store, "dataset", "shelves")) == 2
    assert list(forgotten.parent.iterdir()) == [forgotten], "a forgotten item stays forgotten"
    assert not Path(store, "indexes", "shelves").exists()
    assert not [a for a in list_artifacts(store) if a.kind in ("dataset", "index")]


def test_an_index_rolls_back_to_its_former_version(store, tmp_path):
    package = make_package(store)
    first, second = (grow(store, tmp_path / "images", package, rows) for rows in (30, 60))
    assert find_index(store, "shelves") == second
    assert rollback_index(store, "shelves") == first
    assert find_index(store, "shelves") == first
    with pytest.raises(MissingArtifact, match="former version"):
        rollback_index(store, "shelves")


@pytest.mark.parametrize("file", ["index.faiss", "items.arrow"])
def test_an_index_does_not_roll_back_to_a_damaged_version(store, tmp_path, file):
    package = make_package(store)
    first, second = (grow(store, tmp_path / "images", package, rows) for rows in (30, 60))
    path = Path(first.uri, file)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=file):
        rollback_index(store, "shelves")
    assert find_index(store, "shelves") == second


def test_a_version_that_became_current_meanwhile_is_kept_with_its_ancestors(store, tmp_path):
    package = make_package(store)
    first, second = (grow(store, tmp_path / "images", package, rows) for rows in (30, 60))
    removals = collect(store, package, keep=1)
    assert first.uri in {removal.uri for removal in removals}
    rollback_index(store, "shelves")
    assert remove(removals) == []
    assert find_index(store, "shelves") == first
    assert all(not checked.damaged for checked in check_store(store))
    assert {a.uri for a in list_artifacts(store)} >= {first.uri, first.embeddings.uri, second.uri}


@pytest.mark.parametrize("where", ["runs/mine", "indexes/shelves/x"])
def test_the_target_of_a_link_in_the_store_is_not_removed(store, tmp_path, where):
    storage.mark_store(store)
    (tmp_path / "elsewhere").mkdir()
    storage.seal(str(tmp_path / "elsewhere"), {"kind": "test"})
    link = Path(store, where)
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    if where == "runs/mine":
        assert remove_named(store, "run", "mine") == ["mine"]
    else:
        assert remove_named(store, "index", "shelves") == ["shelves@x"]
    assert not link.is_symlink()
    assert Path(tmp_path, "elsewhere", "manifest.json").exists()


def flip_middle(uri):
    content = bytearray(storage.read_bytes(uri))
    content[len(content) // 2] ^= 1
    storage.write_bytes(uri, bytes(content))


@pytest.mark.parametrize("file", ["index.faiss", "items.arrow"])
def test_a_damaged_index_on_s3_is_rebuilt_in_place(s3_store, tmp_path, file):
    ref = grow(s3_store, tmp_path / "images", make_package(s3_store), 30)
    flip_middle(storage.join(ref.uri, file))
    states = repaired(s3_store, [checked for checked in check_store(s3_store) if checked.damaged])
    assert list(states.values()) == ["made again"]
    assert not any(checked.damaged for checked in check_store(s3_store))


def test_a_damaged_index_is_kept_if_its_embeddings_cannot_be_made_again(store, tmp_path):
    package = make_package(store)
    ref = grow(store, tmp_path / "images", package, 30)
    for path in (
        "index.faiss",
        f"{ref.embeddings.uri}/part-00000.parquet",
        f"{package.uri}/weights.safetensors",
    ):
        flip_middle(storage.join(ref.uri, path) if "/" not in path else path)
    states = repaired(store, [checked for checked in check_store(store) if checked.damaged])
    assert all("cannot be made again" in state for state in states.values())
    assert {checked.kind for checked in check_store(store) if checked.damaged} == {
        "index",
        "embeddings",
        "package",
    }


def test_a_pointer_to_a_missing_version_is_reported(store, tmp_path):
    ref = grow(store, tmp_path / "images", make_package(store), 30)
    shutil.rmtree(ref.uri)
    damaged = [(checked.kind, checked.damaged) for checked in check_store(store) if checked.damaged]
    assert damaged == [("index pointer", [f"current.json (names {ref.version}, which does not exist)"])]


def test_a_damaged_list_of_forgotten_items_is_named_and_ends_an_ingest(store, tmp_path):
    """Read as it is, it would let a forgotten item come back."""
    make_dataset(tmp_path / "images", store, rows=30)
    add_forgotten(store, "shelves", ["00003.png"])
    flip_middle(storage.join(store, "datasets", "shelves", "forgotten.json"))
    assert [checked.damaged for checked in check_store(store) if checked.damaged] == [["forgotten.json"]]
    with pytest.raises(CorruptArtifact, match=r"forgotten\.json must be as it was written"):
        make_dataset(tmp_path / "images", store, rows=30)


@pytest.mark.parametrize("link", ["datasets", "datasets/shelves"])
def test_gc_removes_nothing_of_another_store_that_is_linked(store, tmp_path, link):
    other = str(tmp_path / "other")
    for rows in (30, 60):
        make_dataset(tmp_path / "images", other, rows=rows)
    dead = storage.make_folder(storage.join(other, "datasets", "shelves", ".staging-ingest-00000000"))
    make_old(dead)
    storage.mark_store(store)
    Path(store, link).parent.mkdir(exist_ok=True)
    Path(store, link).symlink_to(Path(other, link))
    before = sorted(Path(other).rglob("*"))
    assert collect(store, keep=1) == []
    with pytest.raises(InvalidSetting, match="is a symbolic link"):
        remove_named(store, "dataset", "shelves")
    assert sorted(Path(other).rglob("*")) == before
    assert len(list_datasets(store)) == 2, "it can be read"


def test_gc_ends_with_a_cyclic_link(store):
    storage.mark_store(store)
    Path(store, "datasets").mkdir()
    Path(store, "datasets", "loop").symlink_to(store)
    assert collect(store) == []


@pytest.mark.parametrize("victim", ["index.faiss", "items.arrow", "part", "fragment", "weights.safetensors"])
def test_a_flipped_byte_is_reported_and_repaired_if_possible(store, tmp_path, victim):
    package = make_package(store)
    ref = grow(store, tmp_path / "images", package, 30)
    path = next(p for p in sorted(Path(store).rglob(f"{victim}*")) if p.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    damaged = [checked for checked in check_store(store) if checked.damaged]
    assert [[Path(name).name for name in checked.damaged] for checked in damaged] == [[path.name]]
    states = repaired(store, damaged)
    if victim.startswith("weights"):
        assert "cannot be made again" in states[package.uri]
    else:
        assert list(states.values()) == ["made again"]
        assert not any(checked.damaged for checked in check_store(store))
        assert find_index(store, "shelves") == ref
        assert find_dataset(store, "shelves") == ref.embeddings.items


def test_open_uploads_of_killed_writers_are_aborted(s3_store):
    storage.mark_store(s3_store)
    bucket, _, prefix = s3_store.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/datasets/x#1/a b")
    client.create_multipart_upload(Bucket=bucket, Key="of-others")
    upload = storage.open_uploads(s3_store)[0]
    assert collect(s3_store, now=upload.initiated + timedelta(hours=2)) == [], "its writer may be running"
    removals = collect(s3_store, now=upload.initiated + timedelta(days=2))
    assert [(r.kind, r.uri) for r in removals] == [("upload", f"{s3_store}/datasets/x#1/a b")]
    remove(removals)
    uploads = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in uploads] == ["of-others"]


def test_a_dataset_version_that_a_schedule_names_is_kept(store, tmp_path):
    package = make_package(store)
    first, _ = (grow(store, tmp_path / "images", package, rows) for rows in (30, 60))
    pinned = first.embeddings.items
    settings = {"cron": "0 3 * * *", "model": "shelves", "dataset": f"shelves@{pinned.version}"}
    storage.write_json(storage.join(store, "indexes", "shelves", "refresh.json"), settings)
    removed = {removal.uri for removal in collect(store, package, keep=1)}
    assert removed == {first.uri, first.embeddings.uri}


def index_vectors(store, folder, seed):
    """Imported vectors, indexed and published under the name `clip`."""
    path = write_npy(folder, random_vectors(seed=seed))
    table = import_vectors(store, "clip", path).embeddings
    ref = build_index(store, "clip", table, IndexConfig())
    publish_index(store, ref)
    return ref


def test_imported_vectors_go_with_the_last_index_that_needs_them(store, tmp_path):
    versions = [index_vectors(store, tmp_path, seed) for seed in (1, 2, 3)]
    for ref in versions:
        make_old(ref.uri)
        make_old(ref.embeddings.uri)
    removals = collect(store, keep=2)
    assert {removal.uri for removal in removals} == {versions[0].uri, versions[0].embeddings.uri}
    remove(removals)
    assert not any(checked.damaged for checked in check_store(store))
    assert {str(user) for user in dependents(store, versions[2].embeddings.uri)} == {str(versions[2])}
    with pytest.raises(InvalidSetting, match="Remove them first"):
        remove_named(store, "vectors", "clip")


@pytest.mark.parametrize("file", ["part-00000.parquet", "items/manifest.json", "manifest.json"])
def test_damaged_vectors_are_found_and_their_index_is_not_built_from_them(store, tmp_path, file):
    ref = index_vectors(store, tmp_path, 1)
    flip_middle(f"{ref.embeddings.uri}/{file}")
    (checked,) = [each for each in check_store(store) if each.damaged]
    assert (checked.kind, checked.title) == ("vectors", f"clip@{ref.embeddings.version}")
    assert "import their file again" in repaired(store, check_store(store))[ref.embeddings.uri]
    import_vectors(store, "clip", tmp_path / "vectors.npy")
    assert not any(checked.damaged for checked in check_store(store))


@pytest.fixture
def two_in_shards(store, tmp_path):
    """Two versions of an index in shards; they have a table and no shard in common."""
    ref = grow(store, tmp_path / "images", make_package(store), 60)
    single = ref.model_copy(update={"name": "shop"})
    return [publish_in_shards(store, single, IndexConfig(shards=2, recall_queries=q)) for q in (9, 5)]


def test_the_shards_of_a_version_go_with_it_however_young_they_are(store, two_in_shards):
    first, second = two_in_shards
    removed = remove(collect(store, first.embeddings.embedder, keep=1))
    assert {each.uri for each in removed} == {first.uri, *(shard.uri for shard in first.shards)}
    open_index(find_index(store, "shop")).check()
    assert find_index(store, "shop") == second


def test_removing_a_version_removes_the_shards_that_no_other_has(store, two_in_shards):
    first, second = two_in_shards
    assert rollback_index(store, "shop") == first
    assert remove_named(store, "index", str(second)) == [str(second)]
    assert sorted(os.listdir(f"{store}/indexes/shop/shards")) == sorted(s.version for s in first.shards)


def test_shards_of_a_build_that_is_not_finished_stay_for_a_day(store, two_in_shards):
    _, second = two_in_shards
    storage.remove(second.uri)
    shards = {shard.uri for shard in second.shards}
    package = second.embeddings.embedder
    assert not shards & {each.uri for each in collect(store, package)}
    later = datetime.now(UTC) + timedelta(days=2)
    assert shards <= {each.uri for each in collect(store, package, now=later)}


def test_nothing_is_removed_while_something_needed_does_not_say_what_it_was_made_of(store, two_in_shards):
    _, second = two_in_shards
    Path(second.uri, "manifest.json").write_bytes(b"x")
    with pytest.raises(CorruptArtifact, match=rf"{second.version} cannot be read. Do: dml verify --repair"):
        collect(store, second.embeddings.embedder)
    assert remove_named(store, "index", "shop")
    assert collect(store, second.embeddings.embedder) == []


def test_what_cannot_be_removed_is_named_with_what_else_has_that_name(tmp_path):
    store = str(tmp_path)
    storage.mark_store(store)
    with pytest.raises(MissingArtifact, match=r"index 'vecs' must exist in the store; there is none\.$"):
        remove_named(store, "index", "vecs")
    np.save(tmp_path / "vectors.npy", np.eye(4, dtype=np.float32))
    import_vectors(store, "vecs", tmp_path / "vectors.npy")
    with pytest.raises(MissingArtifact, match="Of that name there is vectors: dml rm vectors vecs"):
        remove_named(store, "index", "vecs")

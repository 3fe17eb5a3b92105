"""A forgotten item's bytes are in no file of the store, and it does not come back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dml.config import DatasetReportConfig, IndexConfig
from dml.data.dataset import find_dataset, list_datasets, read_rows
from dml.data.forgotten import add_forgotten
from dml.data.ingest import ingest, ingest_config_of
from dml.data.mapped import open_mapped
from dml.data.thumbnails import make_thumbnails, read_thumbnails
from dml.embedding.embed import embed
from dml.embedding.external import import_vectors
from dml.embedding.imported import find_vectors
from dml.embedding.table import read_embeddings
from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact
from dml.integrity import check_store
from dml.models.package import load_package
from dml.report.dataset_report import write_dataset_report
from dml.retrieval.build import build_index
from dml.retrieval.index import find_index, publish_index
from dml.retrieval.shards import open_index
from dml.serving.answers import draw_sample
from flows.forget import forget_flow
from flows.verify import repaired
from tests.embedding.parts import make_dataset, make_package, png
from tests.retrieval.in_shards import publish_in_shards

GONE = ["00003.png", "00017.png"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Two versions of a dataset that hold the items, an index on each, pictures and cached copies."""
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "cache"))  # other tests cache the same pictures
    store = str(tmp_path / "store")
    package = make_package(store)
    for rows, name in ((30, "small"), (60, "large")):
        dataset = make_dataset(tmp_path / "images", store, rows=rows)
        ref = build_index(store, name, embed(store, package, dataset), IndexConfig(), model="shelves/1")
        publish_index(store, ref)
        draw_sample(store, ref)
        open_mapped(dataset)
        read_thumbnails(dataset)
    return store


def files_with(content, *folders):
    below = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return [path for path in below if content in path.read_bytes()]


def test_no_file_holds_a_forgotten_items_image_or_vector(store):
    table = read_embeddings(find_index(store, "large").embeddings)
    rows = [table.ids.to_pylist().index(id_) for id_ in GONE]
    thumbnails = make_thumbnails([png(3), png(17)]).pixels
    traces = [png(3), png(17), *table.vectors[rows], *thumbnails]
    places = (store, os.environ["DML_CACHE"])
    assert all(files_with(bytes(trace), *places) for trace in traces)
    report = forget_flow.fn("shelves", GONE, store)
    assert not [path for trace in traces for path in files_with(bytes(trace), *places)]
    assert not list(Path(store, "galleries").iterdir()), "they show images of the versions that are gone"
    assert sorted(str(ref) for ref in report.rebuilt) == sorted(
        str(find_index(store, n)) for n in ("small", "large")
    )
    for ref in list_datasets(store):
        assert not set(GONE) & set(read_rows(ref, columns=["id"])["id"].to_pylist())
    assert all(not each.damaged for each in check_store(store))


def test_a_page_of_a_dataset_that_held_the_items_is_removed(store):
    page = write_dataset_report(store, find_dataset(store, "shelves"), DatasetReportConfig(classes=1)).report
    assert page.uri in forget_flow.fn("shelves", GONE, store).removed
    assert not Path(page.uri).exists()


def test_searches_continue_and_never_answer_with_it(store):
    forget_flow.fn("shelves", GONE, store)
    for name, rows in (("small", 28), ("large", 58)):
        index = open_index(find_index(store, name))
        vectors = load_package(index.ref.embeddings.embedder.uri).embed([png(3)])
        result = index.search(vectors, 100, embedder=index.ref.embeddings.embedder.fingerprint)
        ids = [answer.id for answer in result.answers[0]]
        assert len(ids) == rows
        assert not set(GONE) & set(ids)


@pytest.mark.parametrize("settings", [{"shards": 2}, {"factory": "IVF40,Flat"}], ids=str)
def test_an_index_whose_settings_the_rest_does_not_allow_is_built_otherwise(store, settings):
    current = find_index(store, "large")
    config = IndexConfig().model_copy(update=settings)
    if "factory" in settings:
        publish_index(store, build_index(store, "large", current.embeddings, config, model="shelves/1"))
    else:
        publish_in_shards(store, current, config)
    most = [f"{n:05d}.png" for n in range(30, 60)]
    report = forget_flow.fn("shelves", most, store)
    (large,) = [ref for ref in report.rebuilt if ref.name == "large"]
    assert (large.rows, large.factory, large.shards) == (30, "Flat", ())
    assert find_index(store, "large") == large
    assert not list(Path(store, "indexes", "large").rglob(f"*{current.version}*"))


@pytest.mark.ray
@pytest.mark.slow
def test_nothing_is_forgotten_while_a_shard_does_not_say_what_it_was_made_of(store):
    sharded = publish_in_shards(store, find_index(store, "large"), IndexConfig(shards=2))
    Path(sharded.shards[0].uri, "manifest.json").write_bytes(b"x")
    before = find_dataset(store, "shelves")
    with pytest.raises(CorruptArtifact, match=sharded.shards[0].version):
        forget_flow.fn("shelves", GONE, store)
    assert find_dataset(store, "shelves") == before
    assert set(repaired(store, [each for each in check_store(store) if each.damaged]).values()) == {
        "made again"
    }
    assert len(forget_flow.fn("shelves", GONE, store).rebuilt) == 2


def test_reading_the_source_again_does_not_bring_it_back(store):
    forget_flow.fn("shelves", GONE, store)
    current = find_dataset(store, "shelves")
    assert current.rows == 58
    assert ingest(ingest_config_of(current), store) == current


def test_a_forget_that_was_killed_continues(store):
    add_forgotten(store, "shelves", GONE)
    report = forget_flow.fn("shelves", GONE, store)
    assert len(report.rebuilt) == 2
    again = forget_flow.fn("shelves", GONE, store)
    assert (again.rebuilt, again.removed) == ([], [])


def test_an_id_that_is_nowhere_changes_nothing(store):
    before = sorted(map(str, Path(store).rglob("*")))
    with pytest.raises(MissingArtifact, match=r"\['nobody'\] are in none"):
        forget_flow.fn("shelves", [GONE[0], "nobody"], store)
    assert sorted(map(str, Path(store).rglob("*"))) == before


def test_a_class_that_lost_all_its_items_leaves_its_name_nowhere(store):
    of_class = [f"{n:05d}.png" for n in range(60) if n % 10 == 7]
    forget_flow.fn("shelves", of_class, store)
    ref = find_dataset(store, "shelves")
    rows = read_rows(ref, columns=["label", "class_id"])
    assert ref.classes == 9
    assert sorted(set(rows["class_id"].to_pylist())) == list(range(9))
    assert "class 7" not in rows["label"].to_pylist()
    assert not files_with(
        b"class 7", *(Path(store, folder) for folder in ("datasets", "indexes", "embeddings"))
    )


def test_the_last_item_is_not_forgotten_but_the_dataset_removed(store):
    everything = [f"{n:05d}.png" for n in range(60)]
    with pytest.raises(InvalidSetting, match="dml rm dataset shelves"):
        forget_flow.fn("shelves", everything, store)


def test_other_items_of_the_same_bytes_are_named(store, tmp_path):
    (tmp_path / "images" / "00004.png").write_bytes(png(3))
    config = ingest_config_of(find_dataset(store, "shelves"))
    ingest(config, store)
    assert forget_flow.fn("shelves", ["00003.png"], store).same_images == ["00004.png"]


@pytest.mark.parametrize("file", ["quarantine.parquet", "classes.parquet", "fragment-*.parquet"])
def test_a_damaged_version_is_named_and_nothing_is_removed(store, file):
    path = next(Path(store, "datasets").rglob(file))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptArtifact, match=path.name):
        forget_flow.fn("shelves", GONE, store)
    assert len(list_datasets(store)) >= 2
    assert all(open_index(find_index(store, name)) for name in ("small", "large"))


def test_a_damaged_table_of_the_latest_ingest_is_named(store):
    Path(store, "quarantine", "shelves.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptArtifact, match=r"quarantine/shelves\.parquet"):
        forget_flow.fn("shelves", GONE, store)
    Path(store, "quarantine", "shelves.parquet").unlink()
    assert forget_flow.fn("shelves", GONE, store).items == 2


FORGET_AND_DIE = """
import itertools, os, signal, sys
from flows.forget import forget_flow
from flows.verify import repaired
changes = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}
seen = itertools.count(1)
def hook(event, _):
    if event in changes and next(seen) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
forget_flow.fn("shelves", sys.argv[3:], sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [12, 40, 55])
def test_killed_anywhere_and_repeated_it_leaves_nothing_of_the_items_and_all_of_the_others(store, number):
    table = read_embeddings(find_index(store, "large").embeddings)
    rows = [table.ids.to_pylist().index(id_) for id_ in GONE]
    thumbnails = make_thumbnails([png(3), png(17)]).pixels
    traces = [png(3), png(17), *table.vectors[rows], *thumbnails]
    died = subprocess.run([sys.executable, "-c", FORGET_AND_DIE, str(number), store, *GONE], check=False)
    assert died.returncode == -signal.SIGKILL
    assert all(open_index(find_index(store, name)) for name in ("small", "large")), "searches go on"
    forget_flow.fn("shelves", GONE, store)
    places = (store, os.environ["DML_CACHE"])
    assert not [path for trace in traces for path in files_with(bytes(trace), *places)]
    left = {name: len(open_index(find_index(store, name)).items) for name in ("small", "large")}
    assert left == {"small": 28, "large": 58}
    assert all(not each.damaged for each in check_store(store))


def test_items_of_imported_vectors_are_forgotten_by_their_ids(tmp_path):
    store = str(tmp_path / "store")
    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32))
    import_vectors(store, "clip", tmp_path / "v.npy")
    with pytest.raises(MissingArtifact, match=r"in imported vectors 'clip'; \['9'\] are in none"):
        forget_flow.fn("clip", ["1", "9"], store)
    report = forget_flow.fn("clip", ["1"], store)
    assert (report.items, len(report.removed), report.still_held_by) == (1, 1, [])
    assert read_embeddings(find_vectors(store, "clip")).ids.to_pylist() == ["0", "2", "3"]
    with pytest.raises(InvalidSetting, match="must keep at least one item"):
        forget_flow.fn("clip", ["0", "2", "3"], store)

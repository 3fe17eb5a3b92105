"""A refreshed index holds what is new, having embedded nothing twice."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dml import storage
from dml.config import IngestConfig
from dml.embedding.external import import_vectors
from dml.errors import InvalidSetting
from dml.refs import IndexRef
from dml.reports import DatasetChanges
from dml.retrieval.gallery.gallery import Gallery
from dml.retrieval.index import find_index
from dml.retrieval.refresh import ask_refresh, end_refresh
from dml.retrieval.thresholds import find_thresholds_ref
from flows.calibrate import calibrate_flow
from flows.index import index_flow, index_vectors_flow
from flows.ingest import ingest_flow
from flows.refresh import refresh_flow
from flows.reindex import reindex_flow
from flows.train import train_flow
from tests.data.opened import files_opened
from tests.data.test_delta import settle
from tests.embedding.parts import embedded_in_this_process, unit_vectors


@pytest.fixture
def images(tmp_path):
    """Eight classes of five noisy pictures each."""
    return class_images(tmp_path / "images", classes=8, per_class=5)


def class_images(folder: Path, *, classes: int, per_class: int) -> Path:
    for label in range(classes):
        for number in range(per_class):
            add_image(folder, label, number)
    return folder


def add_image(folder: Path, label: int, number: int, *, seed: int = 0) -> None:
    chance = np.random.default_rng((label, number, seed))
    pixels = np.random.default_rng(label).integers(0, 200, (28, 28)) + chance.integers(0, 55, (28, 28))
    (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class{label}" / f"{number}.png")


@pytest.fixture
def embedded():
    with embedded_in_this_process() as counts:
        yield counts


@pytest.mark.slow
def test_new_images_are_found_and_only_they_are_embedded(images, embedded, tmp_path):
    settle()
    store = str(tmp_path / "store")
    ingest_flow.fn(IngestConfig(name="shop", source=str(images)), store)
    settings = ["training.num_steps=2", "sampler.classes_per_batch=4", "evaluation.baselines=false"]
    train_flow.fn("shop", "smoke", settings, store=store)
    first = index_flow.fn("shop", "shop", "shop", store=store)
    assert first.rows == 40

    embedded.clear()
    unchanged = reindex_flow.fn("shop", "shop", "shop", store=store)
    assert (unchanged.version, unchanged.ingested) == (first.version, DatasetChanges(unchanged=40))
    assert sum(embedded) == 0, "nothing is new"

    add_image(images, 3, 5)
    add_image(images, 8, 0)
    with files_opened(images) as opened:
        refreshed = reindex_flow.fn("shop", "shop", "shop", store=store)
    assert sorted(opened) == [str(images / "class3" / "5.png"), str(images / "class8" / "0.png")]
    assert sum(embedded) == 2
    assert refreshed.rows == 42
    assert find_index(store, "shop").version == refreshed.version
    assert find_index(store, f"shop@{first.version}") == first

    pinned = f"shop@{first.embeddings.items.version}"
    again = reindex_flow.fn("shop", "shop", pinned, store=store)
    assert (again.version, again.ingested) == (first.version, None)
    assert find_index(store, "shop") == first, "a pinned version is taken as it is"


def trained(source: str, store: str) -> IndexRef:
    """An index of a dataset by a model that was trained on it for a moment."""
    ingest_flow.fn(IngestConfig(name="shop", source=source, num_workers=1), store)
    settings = ["training.num_steps=2", "sampler.classes_per_batch=4", "evaluation.baselines=false"]
    train_flow.fn("shop", "smoke", settings, store=store)
    return index_flow.fn("shop", "shop", "shop", store=store)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["a folder", "S3"])
def test_one_command_ingests_embeds_indexes_builds_the_gallery_in_and_calibrates(
    embedded, tmp_path, place, request
):
    images = class_images(tmp_path / "images", classes=26, per_class=3)
    settle()
    store, source = str(tmp_path / "store"), str(images)
    if place == "S3":
        store = request.getfixturevalue("s3_store")
        source = f"{store}-raw"
        upload(images, source)
    first = trained(source, store)
    calibrate_flow.fn("shop", fpir=0.2, store=store)
    if place != "S3":  # where no gallery can be
        vector = unit_vectors(1, first.embeddings.dim, 5)
        Gallery.open(store, "shop").enrol("guest", vectors=vector, ids=["guest"])
    embedded.clear()
    add_image(images, 3, 5)
    add_image(images, 4, 2, seed=1)
    (images / "class6" / "0.png").unlink()
    if place == "S3":
        storage.delete(f"{source}/class6/0.png")
        upload(images, source, "class3/5.png", "class4/2.png")

    refreshed = reindex_flow.fn("shop", store=store)
    found = refreshed.ingested
    assert found is not None
    counts = (found.files_read, found.added, found.changed, found.relabelled, found.removed, found.unchanged)
    assert counts == (2, 1, 1, 0, 1, 76)
    assert sum(embedded) == 2
    if place == "S3":
        assert (refreshed.rows, refreshed.changes) == (78, None)
    else:
        assert (refreshed.rows, refreshed.changes.enrolled) == (79, 1)
        assert Gallery.open(store, "shop", readonly=True).size.delta == 0
    thresholds = find_thresholds_ref(store, find_index(store, "shop"))
    assert (thresholds.fpir, thresholds.index.version) == (0.2, refreshed.version)


def upload(images: Path, uri: str, *names: str) -> None:
    for path in sorted(images.rglob("*.png")):
        name = str(path.relative_to(images))
        if not names or name in names:
            storage.write_bytes(f"{uri}/{name}", path.read_bytes())


@pytest.mark.slow
def test_of_two_refreshes_at_once_both_give_the_version_that_one_would(images, embedded, tmp_path):
    store = str(tmp_path / "store")
    trained(str(images), store)
    add_image(images, 3, 5)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(reindex_flow.fn, "shop", store=store) for _ in range(2)]
    versions = {done.result().version for done in both}
    assert versions == {find_index(store, "shop").version}
    storage.verify(find_index(store, "shop").uri)
    assert reindex_flow.fn("shop", store=store).version in versions


def saved_vectors(path: Path, rows: int) -> Path:
    np.save(path, unit_vectors(rows, 8, 3))
    return path


def test_an_index_of_imported_vectors_is_refreshed_from_their_current_version_and_its_gallery(tmp_path):
    store, file = str(tmp_path / "store"), tmp_path / "vectors.npy"
    import_vectors(store, "vecs", saved_vectors(file, 40))
    first = index_vectors_flow.fn("vecs", "vecs", store=store)
    assert reindex_flow.fn("vecs", store=store).version == first.version
    Gallery.open(store, "vecs").enrol("guest", vectors=unit_vectors(1, 8, 5), ids=["guest"])
    import_vectors(store, "vecs", saved_vectors(file, 50))
    refreshed = reindex_flow.fn("vecs", store=store)
    assert (refreshed.rows, refreshed.changes.enrolled, refreshed.ingested) == (51, 1, None)
    assert find_index(store, "vecs").version == refreshed.version


def test_an_index_of_imported_vectors_can_be_scheduled_without_a_model(tmp_path):
    store = str(tmp_path / "store")
    import_vectors(store, "vecs", saved_vectors(tmp_path / "vectors.npy", 40))
    index_vectors_flow.fn("shelf", "vecs", store=store)
    for other in ({"model": "shop"}, {"dataset": "shop"}):
        with pytest.raises(InvalidSetting, match="of the imported vectors vecs and is refreshed from them"):
            ask_refresh(store, "shelf", cron="0 3 * * *", **other)
    config = ask_refresh(store, "shelf", cron="0 3 * * *")
    assert (config.model, config.dataset) == ("", "vecs")
    assert [ref.name for ref in refresh_flow.fn(store=store)] == ["shelf"]
    end_refresh(store, "shelf")
    assert refresh_flow.fn(store=store) == []

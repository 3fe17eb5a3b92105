"""A refreshed index holds what is new, having embedded nothing twice."""

import numpy as np
import pytest
from PIL import Image

from dml.config import IngestConfig
from dml.retrieval.index import find_index
from flows.index import index_flow
from flows.ingest import ingest_flow
from flows.reindex import reindex_flow
from flows.train import train_flow
from tests.data.opened import files_opened
from tests.embedding.parts import embedded_in_this_process


@pytest.fixture
def images(tmp_path):
    """Eight classes of five noisy pictures each."""
    folder = tmp_path / "images"
    for label in range(8):
        for number in range(5):
            add_image(folder, label, number)
    return folder


def add_image(folder, label: int, number: int) -> None:
    chance = np.random.default_rng((label, number))
    pixels = np.random.default_rng(label).integers(0, 200, (28, 28)) + chance.integers(0, 55, (28, 28))
    (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class{label}" / f"{number}.png")


@pytest.fixture
def embedded():
    with embedded_in_this_process() as counts:
        yield counts


@pytest.mark.slow
def test_new_images_are_found_and_only_they_are_embedded(images, embedded, tmp_path):
    store = str(tmp_path / "store")
    ingest_flow.fn(IngestConfig(name="shop", source=str(images)), store)
    settings = ["training.num_steps=2", "sampler.classes_per_batch=4", "evaluation.baselines=false"]
    train_flow.fn("shop", "smoke", settings, store=store)
    first = index_flow.fn("shop", "shop", "shop", store=store)
    assert first.rows == 40

    embedded.clear()
    assert reindex_flow.fn("shop", "shop", "shop", store=store) == first
    assert sum(embedded) == 0, "nothing is new"

    add_image(images, 3, 5)
    add_image(images, 8, 0)
    with files_opened(images) as opened:
        refreshed = reindex_flow.fn("shop", "shop", "shop", store=store)
    assert sorted(opened) == [str(images / "class3" / "5.png"), str(images / "class8" / "0.png")]
    assert sum(embedded) == 2
    assert refreshed.rows == 42
    assert find_index(store, "shop") == refreshed
    assert find_index(store, f"shop@{first.version}") == first

    pinned = f"shop@{first.embeddings.items.version}"
    assert reindex_flow.fn("shop", "shop", pinned, store=store) == first
    assert find_index(store, "shop") == first, "a pinned version is taken as it is"

"""On a GPU a package embeds as on the CPU, in as little precision as it is allowed."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dml.config import EncoderConfig, PreprocessingConfig
from dml.models.encoder import Encoder
from dml.models.package import Package, load_package, save_package

pytestmark = pytest.mark.gpu
RGB = PreprocessingConfig(color="RGB", resize=64, crop=64)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


def package_on(device: torch.device, store: str, **settings: str) -> Package:
    ref = save_package(store, Encoder(EncoderConfig(dim=32), channels=3, seed=3), RGB)
    return load_package(ref.uri, device=str(device), **settings)


def pictures(count: int) -> list[bytes]:
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        out = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (70, 64, 3), dtype=np.uint8)).save(out, "PNG")
        images.append(out.getvalue())
    return images


def test_float32_embeddings_are_the_cpus(device, store):
    images = pictures(10)
    expected = package_on(torch.device("cpu"), store).embed(images)
    embeddings = package_on(device, store, precision="float32").embed(images, batch_size=4)
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)


def test_the_default_gives_float32_of_unit_length_close_to_exact(device, store):
    images = pictures(10)
    exact = package_on(device, store, precision="float32").embed(images)
    embeddings = package_on(device, store).embed(images)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert (embeddings * exact).sum(1).min() > 0.995


def test_threads_that_decode_ahead_change_nothing_but_the_time(device, store):
    package, images = package_on(device, store), pictures(11)
    ahead = package.embed(images, batch_size=4, num_threads=3)
    np.testing.assert_allclose(ahead, package.embed(images, batch_size=4, num_threads=0), rtol=0, atol=1e-6)
    assert package.embed([], num_threads=3).shape == (0, 32)

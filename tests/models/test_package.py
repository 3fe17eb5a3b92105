"""A package is what it says: fingerprinted, verified, free of pickle, loadable without training code."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dml import storage
from dml.config import EncoderConfig, PreprocessingConfig
from dml.errors import CorruptArtifact, IncompatibleArtifact, MissingArtifact
from dml.models.encoder import Encoder
from dml.models.package import load_package, read_package, read_preprocessing, save_package
from dml.preprocessing import OversizedImage
from tests.data.pictures import huge_png

GREY = PreprocessingConfig(color="L", resize=28, crop=28, mean=(0.5,), std=(0.5,))


def image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 30), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def package(tmp_path):
    return save_package(str(tmp_path), Encoder(EncoderConfig(dim=16), channels=1, seed=3), GREY)


def test_a_loaded_package_embeds_as_the_encoder_did(package, tmp_path):
    loaded = load_package(package.uri)
    embeddings = loaded.embed([image(i) for i in range(5)], batch_size=2)
    assert embeddings.shape == (5, 16)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(embeddings[3:4], loaded.embed([image(3)]), atol=1e-6)
    assert loaded.embed([]).shape == (0, 16)


def test_an_image_of_more_pixels_than_are_decoded_is_refused_by_its_header(package):
    with pytest.raises(OversizedImage, match="9000 x 9000"):
        load_package(package.uri).embed([image(1), huge_png(9_000)])


def test_the_same_encoder_gives_the_same_package_and_no_second_copy(package, tmp_path):
    again = save_package(str(tmp_path), Encoder(EncoderConfig(dim=16), channels=1, seed=3), GREY)
    other = save_package(str(tmp_path), Encoder(EncoderConfig(dim=16), channels=1, seed=4), GREY)
    assert again == package
    assert other.fingerprint != package.fingerprint
    assert len(storage.list_names(str(tmp_path / "packages"))) == 2


def test_the_preprocessing_decides_the_fingerprint_too(package, tmp_path):
    darker = GREY.model_copy(update={"mean": (0.4,)})
    other = save_package(str(tmp_path), Encoder(EncoderConfig(dim=16), channels=1, seed=3), darker)
    assert other.fingerprint != package.fingerprint
    assert read_preprocessing(other) == darker


def test_one_changed_byte_is_noticed(package):
    path = f"{package.uri}/weights.safetensors"
    content = bytearray(storage.read_bytes(path))
    content[-1] ^= 1
    storage.write_bytes(path, bytes(content))
    with pytest.raises(CorruptArtifact, match=r"weights\.safetensors"):
        load_package(package.uri)
    with pytest.raises(CorruptArtifact, match="fingerprint"):
        read_package(package.uri, package)


def test_a_package_of_a_newer_format_is_refused(package):
    path = f"{package.uri}/package.json"
    storage.write_json(path, {**json.loads(storage.read_bytes(path)), "format_version": 99})
    with pytest.raises(IncompatibleArtifact, match="99"):
        read_package(package.uri, package)


def test_a_missing_package_is_named(tmp_path):
    with pytest.raises(MissingArtifact, match=r"nothing-here has none\. Restore that folder from a copy; or"):
        load_package(str(tmp_path / "nothing-here"))


def test_loading_needs_neither_training_nor_flows_nor_registry(package):
    code = (
        "import sys; from dml.models.package import load_package; load_package(sys.argv[1]); "
        "heavy = {'dml.training', 'flows', 'mlflow', 'ray', 'prefect', 'torchvision', 'timm'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, package.uri], check=True)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"format_version": "2", "runtime": 1, "encoder": 1, "preprocessing": 1}'],
)
def test_a_description_that_is_damaged_is_no_traceback(content, package):
    storage.write_bytes(f"{package.uri}/package.json", content.encode())
    with pytest.raises(CorruptArtifact, match=r"package\.json"):
        read_package(package.uri, package)


def test_a_ref_of_another_dimension_is_refused(package):
    with pytest.raises(CorruptArtifact, match="16"):
        read_package(package.uri, package.model_copy(update={"dim": 17}))


def test_a_package_trained_with_lengths_gives_unit_length_unless_lengths_are_requested(tmp_path):
    encoder = Encoder(EncoderConfig(dim=2, unit_length=False), channels=1, seed=3)
    loaded = load_package(save_package(str(tmp_path), encoder, GREY).uri)
    assert not loaded.encoder.config.unit_length
    images = [image(i) for i in range(5)]
    directions, points = loaded.embed(images), loaded.embed(images, unit_length=False)
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 1e-3
    np.testing.assert_allclose(points / lengths, directions, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)

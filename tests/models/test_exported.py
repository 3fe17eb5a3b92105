"""An exported package embeds as torch does, under the same fingerprint; one that would not is refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dml.config import Conv4Config, EncoderConfig, PreprocessingConfig, TimmConfig, TorchvisionConfig
from dml.errors import IncompatibleArtifact
from dml.models.encoder import Encoder
from dml.models.exported import ExportedRuntime, difference, exported
from dml.models.package import load_package, save_package
from dml.models.runtimes.torch import TorchRuntime
from tests.models.photos import photo, png_of

RGB = PreprocessingConfig(resize=48, crop=48)
CONFIGS = {
    "conv4, max and norm": EncoderConfig(backbone=Conv4Config(), dim=16, pooling="max", layer_norm=True),
    "conv4, gem": EncoderConfig(backbone=Conv4Config(), dim=16, pooling="gem"),
    "squeezenet": EncoderConfig(backbone=TorchvisionConfig(name="squeezenet1_1"), dim=16),
    "resnet18": EncoderConfig(backbone=TorchvisionConfig(name="resnet18"), dim=16, pooling="avg+max"),
    "vit": EncoderConfig(backbone=TimmConfig(name="test_vit", pretrained=False), dim=16, pooling="own"),
}


def make(store, config, preprocessing=RGB, *, seed=1):
    package = save_package(str(store), Encoder(config, channels=3, seed=seed), preprocessing)
    return load_package(package.uri, device="cpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_an_exported_network_embeds_as_torch_does_one_by_one_and_in_batches(tmp_path, name):
    size = {"vit": 160}.get(name, 48)
    package = make(tmp_path, CONFIGS[name], PreprocessingConfig(resize=size, crop=size))
    by_onnx = exported(package, folder=tmp_path / "onnx")
    assert isinstance(by_onnx.runtime, ExportedRuntime)
    assert by_onnx.ref == package.ref
    images = [png_of(photo(60, 50, seed=seed)) for seed in range(7)]
    for batch_size in (1, 7):
        np.testing.assert_allclose(
            by_onnx.embed(images, batch_size=batch_size), package.embed(images), atol=2e-6
        )
    raw, expected = (each.embed(images, unit_length=False) for each in (by_onnx, package))
    np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_network_is_exported_once_and_again_where_the_file_is_damaged_or_of_another(tmp_path):
    folder = tmp_path / "onnx"
    package, other = (make(tmp_path, CONFIGS["conv4, gem"], seed=seed) for seed in (1, 2))
    exported(package, folder=folder)
    (path,) = folder.iterdir()
    written = path.stat().st_mtime_ns
    exported(package, folder=folder)
    assert path.stat().st_mtime_ns == written
    exported(other, folder=folder)
    (of_other,) = set(folder.iterdir()) - {path}
    for content in (b"damaged", of_other.read_bytes()):
        path.write_bytes(content)
        assert difference(package.runtime, exported(package, folder=folder).runtime) < 1e-6


def test_a_network_whose_embeddings_would_differ_is_refused(tmp_path):
    package = make(tmp_path, CONFIGS["squeezenet"])

    class Noisy(torch.nn.Module):
        """Computes otherwise while it is exported."""

        def forward(self, features):
            return features * (1 + torch.arange(512) % 2 * float(torch.jit.is_tracing()))

    package.encoder.norm = Noisy()
    with pytest.raises(IncompatibleArtifact, match="must differ from torch's by at most"):
        exported(package, folder=tmp_path / "onnx")
    assert list((tmp_path / "onnx").iterdir()) == []


def test_images_of_any_size_are_refused(tmp_path):
    package = make(tmp_path, CONFIGS["squeezenet"], PreprocessingConfig(resize=48, crop=48, crop_mode="none"))
    with pytest.raises(IncompatibleArtifact, match="of one size"):
        exported(package, folder=tmp_path / "onnx")


def test_a_network_is_exported_while_another_thread_runs_it(tmp_path):
    package = make(tmp_path, CONFIGS["squeezenet"])
    assert isinstance(package.runtime, TorchRuntime)
    image = [torch.zeros(3, 48, 48)]
    expected = package.runtime.embed(image)
    with ThreadPoolExecutor(1) as pool:
        exports = [pool.submit(exported, package, folder=tmp_path / str(each)) for each in range(3)]
        while not all(export.done() for export in exports):
            assert torch.equal(package.runtime.embed(image), expected)
    assert difference(exports[-1].result().runtime, package.runtime) < 1e-6

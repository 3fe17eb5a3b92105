"""Weights files as people have them: two formats, and what a failed download leaves in their place."""

import pickle

import pytest
import torch
from safetensors.torch import save, save_file

from dml.config import EncoderConfig, TorchvisionConfig
from dml.errors import CorruptArtifact, MissingArtifact
from dml.models.backbones import require_weights
from dml.models.encoder import Encoder
from dml.models.weights import read_weights

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"model": t}]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_of_pytorch_is_read_as_safetensors_is(tmp_path, wrap, zipped):
    torch.save(wrap(TENSORS), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    save_file(TENSORS, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        loaded = read_weights(tmp_path / name)
        assert loaded.keys() == TENSORS.keys()
        assert all(torch.equal(loaded[key], TENSORS[key]) for key in TENSORS)


def test_a_checkpoint_of_a_distributed_run_has_the_plain_names(tmp_path):
    torch.save({f"module.{key}": value for key, value in TENSORS.items()}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == TENSORS.keys()


def test_the_encoder_loads_pytorchs_file_too(tmp_path):
    backbone = TorchvisionConfig()
    weights = Encoder(EncoderConfig(backbone=backbone), channels=3, seed=1).backbone.extractor.state_dict()
    torch.save(weights, tmp_path / "w.pth")
    config = EncoderConfig(backbone=TorchvisionConfig(weights=tmp_path / "w.pth"))
    loaded = Encoder(config, channels=3, seed=2).backbone.extractor.state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a weights file was run')",))


WHOLE = save(TENSORS)
STAND_INS = {
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "git lfs pull",
    ),
    "a web page": (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
    "JSON": (b'{"error": "not found"}', "is JSON"),
    "nothing": (b"", "0 bytes"),
    "zeros": (bytes(100), "begins with"),
    "text": (b"x" * 100, "begins with"),
    "a cut head": (WHOLE[:20], "begins with"),
    "cut tensors": (WHOLE[:-4], "load whole"),
    "a cut .pth": (b"PK\x03\x04" + bytes(200), "load whole"),
    "a pickle of code": (pickle.dumps(Harmful(), protocol=2), "as tensors alone"),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_what_is_no_weights_file_is_refused_and_said_what_it_is(tmp_path, name):
    content, message = STAND_INS[name]
    (tmp_path / "w.safetensors").write_bytes(content)
    config = EncoderConfig(backbone=TorchvisionConfig(weights=tmp_path / "w.safetensors"))
    with pytest.raises(CorruptArtifact, match=message):
        Encoder(config, channels=3)


@pytest.mark.parametrize("name", ["a Git LFS pointer", "a web page", "zeros", "a cut head"])
def test_it_is_refused_before_a_run_begins(tmp_path, name):
    (tmp_path / "w.pth").write_bytes(STAND_INS[name][0])
    with pytest.raises(CorruptArtifact):
        require_weights(TorchvisionConfig(weights=tmp_path / "w.pth"))
    with pytest.raises(MissingArtifact, match="none at"):
        require_weights(TorchvisionConfig(weights=tmp_path))


@pytest.mark.parametrize(
    "content", [torch.ones(2), [torch.ones(2)], {"epoch": 3}, {"state_dict": 1}], ids=type
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CorruptArtifact, match="must hold a state dict"):
        read_weights(tmp_path / "w.pth")

"""A checkpoint brings back every number of a training state, and belongs to one run."""

import errno
import resource
from pathlib import Path

import pytest
import torch

from dml.config import EncoderConfig, OptimizerConfig
from dml.errors import CorruptArtifact, IncompatibleArtifact
from dml.models.encoder import Encoder
from dml.training.checkpoint import read_checkpoint, verify_checkpoint, write_checkpoint
from dml.training.optimizer import build_optimizer


def state(kind: str, seed: int):
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(dim=4), channels=1, seed=seed)
    loss = torch.nn.Linear(4, 3)
    return {"encoder": encoder, "loss": loss}, build_optimizer(OptimizerConfig(kind=kind), encoder, loss)


def advance(modules, optimizer, seed: int) -> None:
    images = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    modules["loss"](modules["encoder"](images)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_going_on_from_a_checkpoint_equals_never_having_stopped(kind, tmp_path):
    modules, optimizer = state(kind, seed=0)
    for step in range(3):
        advance(modules, optimizer, step)
    write_checkpoint(tmp_path, step=3, run="a", modules=modules, optimizer=optimizer)
    others, other_optimizer = state(kind, seed=1)
    assert read_checkpoint(tmp_path, run="a", modules=others, optimizer=other_optimizer) == 3
    for step in range(3, 6):
        advance(modules, optimizer, step)
        advance(others, other_optimizer, step)
    for name in modules:
        torch.testing.assert_close(others[name].state_dict(), modules[name].state_dict(), rtol=0, atol=0)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    modules, optimizer = state("adamw", seed=0)
    advance(modules, optimizer, 0)
    write_checkpoint(tmp_path, step=1, run="a", modules=modules, optimizer=optimizer)
    with pytest.raises(IncompatibleArtifact, match="is of a"):
        read_checkpoint(tmp_path, run="b", modules=modules, optimizer=optimizer)


def test_a_checkpoint_holds_no_pickle(tmp_path):
    modules, optimizer = state("adamw", seed=0)
    advance(modules, optimizer, 0)
    write_checkpoint(tmp_path, step=1, run="a", modules=modules, optimizer=optimizer)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


def written(folder: Path) -> Path:
    modules, optimizer = state("adamw", seed=0)
    advance(modules, optimizer, 0)
    write_checkpoint(folder, step=1, run="a", modules=modules, optimizer=optimizer)
    return folder


def flip_two_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0b11
    path.write_bytes(content)


FILES = [
    "encoder.safetensors",
    "loss.safetensors",
    "optimizer.safetensors",
    "state.json",
    "files.rank-00000.json",
]


def test_a_whole_checkpoint_is_found_whole(tmp_path):
    verify_checkpoint(written(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_two_bits, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_or_missing_file_is_named(name, damage, tmp_path):
    damage(written(tmp_path) / name)
    with pytest.raises(CorruptArtifact, match=r"as it was written; .*\.(safetensors|json) is not") as caught:
        verify_checkpoint(tmp_path)
    if name.endswith("safetensors"):
        assert name in str(caught.value)


def test_moments_are_laid_out_in_memory_as_their_weights(tmp_path):
    modules, optimizer = state("adamw", seed=0)
    modules["encoder"].to(memory_format=torch.channels_last)
    advance(modules, optimizer, 0)
    write_checkpoint(tmp_path, step=1, run="a", modules=modules, optimizer=optimizer)
    others, other_optimizer = state("adamw", seed=1)
    others["encoder"].to(memory_format=torch.channels_last)
    read_checkpoint(tmp_path, run="a", modules=others, optimizer=other_optimizer)
    for parameter, moments in other_optimizer.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()
        assert moments["exp_avg_sq"].stride() == parameter.stride()


def test_a_full_disk_is_reported_with_the_systems_message(tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"encoder\.safetensors") as caught:
            written(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert caught.value.errno == errno.EFBIG

"""A checkpoint brings back every number of a training state, and belongs to one run."""

import pytest
import torch

from dml.config import EncoderConfig, OptimizerConfig
from dml.errors import IncompatibleArtifact
from dml.models.encoder import Encoder
from dml.training.checkpoint import read_checkpoint, write_checkpoint
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

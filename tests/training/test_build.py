"""A loss by configuration is the loss that anybody's own loop makes."""

import typing

import pytest
from torch import nn

from dml import config, losses
from dml.training.build import build_loss
from dml.training.conformance_table import DIM, NUM_CLASSES, Recipe

KINDS = {kind.__name__: kind for kind in typing.get_args(typing.get_args(config.LossConfig)[0])}
DIFFERENT = {"NPairConfig": {"scale", "l2"}}
"""Our encoders' embeddings have unit length: the paper's scale is too flat for them, its penalty constant."""


def settings(loss: nn.Module) -> dict[str, object]:
    kinds = (bool, int, float, str, tuple, type(None))
    return {
        name: value
        for name, value in vars(loss).items()
        if isinstance(value, kinds) and name != "seed" and not name.startswith("_")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_of_a_configuration_are_those_of_the_loss(kind):
    built = build_loss(KINDS[kind](), dim=DIM, num_classes=NUM_CLASSES, seed=0)
    own = settings(Recipe(type(built)).make()) | {"normalize": False}  # an encoder's rows are unit vectors
    found = {name for name, value in settings(built).items() if own[name] != value}
    assert found == DIFFERENT.get(kind, set())


def test_the_defaults_of_a_configured_memory_are_those_of_the_memory():
    loss = config.ContrastiveConfig()
    built = build_loss(loss, dim=DIM, num_classes=NUM_CLASSES, seed=0, memory=config.MemoryConfig())
    own = losses.CrossBatchMemory(losses.Contrastive(), dim=DIM)
    assert settings(built) == settings(own)
    assert len(built.labels) == len(own.labels)


def test_every_loss_can_be_configured():
    built = {
        type(build_loss(kind(), dim=DIM, num_classes=NUM_CLASSES, seed=0)).__name__ for kind in KINDS.values()
    }
    assert built == {loss.__name__ for loss in losses.LOSSES.values()}


def test_a_configuration_names_the_miners_there_are():
    assert typing.get_args(config.Mining) == losses.MINING

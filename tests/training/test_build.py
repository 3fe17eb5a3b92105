"""A loss by configuration is the loss that anybody's own loop makes."""

import subprocess
import sys
import typing

import pytest
from pydantic import ValidationError
from torch import nn

from dml import config, losses
from dml.arguments import constructor_arguments
from dml.training.build import build_loss
from dml.training.conformance_table import DIM, NUM_CLASSES, Recipe

KINDS = config.loss_kinds()
DIFFERENT = {"n_pair": {"scale", "l2"}}
"""Our encoders' embeddings have unit length: the paper's scale is too flat for them, its penalty constant."""
ALWAYS_GIVEN = {"num_classes", "dim", "seed", "normalize"}


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
    direct = settings(Recipe(type(built)).make()) | {"normalize": False}  # an encoder's rows are unit vectors
    actual = {name for name, value in settings(built).items() if direct[name] != value}
    assert actual == DIFFERENT.get(kind, set())


CLASSIFICATION = [kind for kind in KINDS if KINDS[kind]().is_classification]


@pytest.mark.parametrize("kind", CLASSIFICATION)
def test_where_embeddings_keep_their_lengths_every_loss_but_softmax_normalizes_itself(kind):
    built = build_loss(KINDS[kind](), dim=DIM, num_classes=NUM_CLASSES, seed=0, unit_length=False)
    assert built.normalize == (kind != "softmax")


def test_the_classification_losses_are_the_cross_entropies():
    expected = {"softmax", "normalized_softmax", "cosface", "arcface"}
    assert set(CLASSIFICATION) == expected | {"proxy_nca", "proxy_nca_plus_plus", "soft_triple"}


def test_the_defaults_of_a_configured_memory_are_those_of_the_memory():
    loss = config.loss_config("contrastive")
    built = build_loss(loss, dim=DIM, num_classes=NUM_CLASSES, seed=0, memory=config.MemoryConfig())
    direct = losses.CrossBatchMemory(losses.Contrastive(), dim=DIM)
    assert settings(built) == settings(direct)
    assert len(built.labels) == len(direct.labels)


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_every_loss_is_configured_by_the_arguments_of_its_constructor(kind):
    arguments = constructor_arguments(losses.LOSSES[kind])
    read = KINDS[kind].signature
    assert list(read.arguments) == list(arguments)
    assert {name: each.default for name, each in read.arguments.items() if each.default is not ...} == {
        name: each.default for name, each in arguments.items() if each.default is not each.empty
    }
    fields = set(KINDS[kind].model_fields) - {"kind", "per_class"}
    assert fields == set(arguments) - ALWAYS_GIVEN
    assert read.bases == {
        base.__name__ for base in losses.LOSSES[kind].__mro__[1:] if base.__module__.startswith("dml")
    }
    assert all(each.description for name, each in read.arguments.items() if name not in ALWAYS_GIVEN)


def test_a_configuration_is_refused_where_the_constructor_refuses():
    for settings in [
        {"kind": "ranked_list", "margin": 1.5},
        {"kind": "ranked_list", "boundary": 0.3},
        {"kind": "triplet_margin", "margin": None, "mining": "semi_hard"},
        {"kind": "triplet_margin", "margin": 3.0, "squared": False},
        {"kind": "recall_at_k", "ks": ()},
        {"kind": "circle", "scale": -1.0},
    ]:
        with pytest.raises(ValidationError):
            config.loss_config(**settings)
        with pytest.raises(ValueError, match="must"):
            losses.LOSSES[settings.pop("kind")](**settings)


def test_a_configuration_names_the_miners_there_are():
    assert typing.get_args(config.Mining) == losses.MINING


def test_to_read_the_settings_of_the_losses_does_not_import_torch():
    code = "import sys, dml.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

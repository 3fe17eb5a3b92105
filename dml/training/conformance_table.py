"""The losses of `dml.losses` as the conformance suite runs them: every one, with all it combines with."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from dml import losses
from dml.arguments import constructor_arguments

DIM = 16
NUM_CLASSES = 13  # no multiple of 2, 3 or 4 workers; the batches have classes 0 to 11
_MEMORY = {"size": 40, "start_after": 1}  # not a multiple of the batch's 24 rows: the queue wraps within one

_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "ArcFace": {"beyond pi": {"margin": 2.0, "scale": 4.0}},
    "Contrastive": {"plain hinges": {"positive_margin": 0.2, "negative_margin": 1.2, "squared": False}},
    "Margin": {"of each class": {"num_classes": NUM_CLASSES, "nu": 0.01}},
    "MultiSimilarity": {"no mining": {"epsilon": None}},
    "TripletMargin": {"plain": {"squared": False}, "soft": {"margin": None, "mining": "all"}},
}
"""Losses by name to what else they are made with, beside their defaults, by name."""


@dataclass(frozen=True)
class Recipe:
    """How a loss is made, in a form that travels to other processes."""

    factory: Callable[..., nn.Module]
    """Importable by name; given those of `num_classes` and `dim` that are parameters without a default."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    in_memory: bool = False
    """Behind a cross-batch memory."""

    def make(self) -> nn.Module:
        """The loss for `NUM_CLASSES` classes and embeddings of `DIM`, with new weights."""
        sizes = {"num_classes": NUM_CLASSES, "dim": DIM}
        wanted = {name: sizes[name] for name in required(self.factory) if name in sizes}
        loss = self.factory(**wanted, **self.settings)
        return losses.CrossBatchMemory(loss, dim=DIM, **_MEMORY) if self.in_memory else loss


def required(factory: Callable[..., nn.Module]) -> set[str]:
    """The parameters without a default."""
    parameters = inspect.signature(factory).parameters.values()
    return {parameter.name for parameter in parameters if parameter.default is parameter.empty}


def table() -> dict[str, Recipe]:
    """Name to recipe, for every loss of `dml.losses`."""
    return {name: recipe for loss in losses.LOSSES.values() for name, recipe in _combinations(loss)}


def _combinations(loss: type[losses.EmbeddingLoss]) -> Iterator[tuple[str, Recipe]]:
    variants: dict[str, dict[str, Any]] = {"": {}, **_VARIANTS.get(loss.__name__, {})}
    arguments = constructor_arguments(loss)
    if "mining" in arguments:
        variants |= {mining: {"mining": mining} for mining in losses.MINING}
    if "sharded" in arguments:
        variants["sharded"] = {"sharded": True}
    if "sample_rate" in arguments:
        variants["sampled"] = {"sample_rate": 0.5}
        variants["sharded, sampled"] = {"sharded": True, "sample_rate": 0.5}
    for variant, settings in variants.items():
        name = f"{loss.__name__}, {variant}" if variant else loss.__name__
        recipe = Recipe(loss, settings)
        yield name, recipe
        module = recipe.make()
        if isinstance(module, losses.EmbeddingLoss) and not module.within_batch:
            yield f"{name}, memory", replace(recipe, in_memory=True)

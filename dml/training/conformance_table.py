"""The losses of `dml.losses` as the conformance suite runs them: every one, with all it combines with."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from dml import losses
from dml.losses.contest import Contest
from dml.losses.proxies import ProxyLoss

DIM = 16
NUM_CLASSES = 13  # no multiple of 2, 3 or 4 workers; the batches have classes 0 to 11
_MEMORY = {"size": 40, "start_after": 1}  # not a multiple of the batch's 24 rows: the queue wraps within one

_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "ArcFace": {"": {}, "beyond pi": {"margin": 2.0, "scale": 4.0}},
    "Circle": {"": {}},
    "Contrastive": {
        "": {},
        "plain hinges": {"positive_margin": 0.2, "negative_margin": 1.2, "squared": False},
    },
    "CosFace": {"": {}},
    "GeneralisedLifted": {"": {}},
    "LiftedStructure": {"": {}},
    "Margin": {"": {}, "of each class": {"num_classes": NUM_CLASSES, "nu": 0.01}},
    "MultiSimilarity": {"": {}, "no mining": {"epsilon": None}},
    "NPair": {"": {}},
    "NTXent": {"": {}},
    "NormalisedSoftmax": {"": {}},
    "ProxyAnchor": {"": {}},
    "ProxyNCA": {"": {}},
    "ProxyNCAPlusPlus": {"": {}},
    "RankedList": {"": {}},
    "RecallAtK": {"": {}},
    "SmoothAP": {"": {}},
    "SoftTriple": {"": {}},
    "Softmax": {"": {}},
    "SupCon": {"": {}},
    "TripletMargin": {"": {}, "plain": {"squared": False}, "soft": {"margin": None, "mining": "all"}},
}
"""Loss to variants by name to what they are made with; the first meets every mining, all a memory."""


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
    """Name to recipe, for every exported loss.

    Raises:
        LookupError: a loss was added to `dml.losses` and not here.
    """
    exported = {name for name in losses.__all__ if _is_loss(getattr(losses, name))}
    if exported != set(_SETTINGS):
        raise LookupError(
            f"Every loss of dml.losses needs a row in {__name__}._SETTINGS, and nothing else one; missing "
            f"{sorted(exported - set(_SETTINGS))}, unknown {sorted(set(_SETTINGS) - exported)}."
        )
    return {name: recipe for loss in _SETTINGS for name, recipe in _combinations(loss)}


def _is_loss(exported: Any) -> bool:
    is_module = isinstance(exported, type) and issubclass(exported, nn.Module)
    return is_module and exported is not losses.CrossBatchMemory


def _combinations(loss: str) -> Iterator[tuple[str, Recipe]]:
    factory = getattr(losses, loss)
    variants = dict(_SETTINGS[loss])
    if "mining" in inspect.signature(factory).parameters:
        variants |= {mining: {"mining": mining} for mining in losses.MINING}
    variants |= _shardings(factory)
    for variant, settings in variants.items():
        name = f"{loss}, {variant}" if variant else loss
        recipe = Recipe(factory, settings)
        yield name, recipe
        if not getattr(recipe.make(), "within_batch", False):
            yield f"{name}, memory", replace(recipe, in_memory=True)


def _shardings(factory: type[nn.Module]) -> dict[str, dict[str, Any]]:
    """Ways of holding and meeting the proxies."""
    if not issubclass(factory, ProxyLoss):
        return {}
    if not issubclass(factory, Contest):
        return {"sharded": {"sharded": True}}
    return {
        "sharded": {"sharded": True},
        "sampled": {"sample_rate": 0.5},
        "sharded, sampled": {"sharded": True, "sample_rate": 0.5},
    }

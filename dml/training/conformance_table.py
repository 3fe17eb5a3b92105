"""The losses of `dml.losses` as the conformance suite runs them: every one, with all it combines with."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dml import losses
from dml.losses.mining import MINING

DIM = 16
NUM_CLASSES = 12
_MEMORY = {"size": 40, "start_after": 1}  # not a multiple of the batch's 24 rows: the queue wraps within one

_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "ArcFace": {"": {}},
    "Circle": {"": {}},
    "Contrastive": {
        "": {},
        "plain hinges": {"positive_margin": 0.2, "negative_margin": 1.2, "squared": False},
    },
    "CosFace": {"": {}},
    "GeneralisedLifted": {"": {}},
    "MultiSimilarity": {"": {}, "no mining": {"epsilon": None}},
    "NTXent": {"": {}},
    "NormalisedSoftmax": {"": {}},
    "ProxyAnchor": {"": {}},
    "ProxyNCA": {"": {}, "the original": {"positive_in_denominator": False}},
    "SupCon": {"": {}},
    "TripletMargin": {"": {}, "plain": {"squared": False}, "soft": {"margin": None}},
}
"""Loss to variants by name to what they are made with; minings and memories are added to each."""


@dataclass(frozen=True)
class Recipe:
    """How a loss is made, in a form that travels to other processes."""

    factory: Callable[..., nn.Module]
    """Importable by name; given those of `num_classes` and `dim` that are parameters without a default."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    in_memory: bool = False
    """Behind a cross-batch memory."""

    def make(self) -> nn.Module:
        sizes = {"num_classes": NUM_CLASSES, "dim": DIM}
        wanted = {name: sizes[name] for name in required(self.factory) if name in sizes}
        loss = self.factory(**wanted, **self.settings)
        return _remember(loss) if self.in_memory else loss


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
    return isinstance(exported, type) and issubclass(exported, nn.Module) and exported.__name__ != _WRAPPER


_WRAPPER = "CrossBatchMemory"


def _remember(loss: nn.Module) -> nn.Module:
    memory: nn.Module = getattr(losses, _WRAPPER)(loss, dim=DIM, **_MEMORY)
    return memory


def _combinations(loss: str) -> Iterator[tuple[str, Recipe]]:
    factory = getattr(losses, loss)
    for variant, settings in _SETTINGS[loss].items():
        for extra in _minings(factory, settings):
            name = ", ".join(part for part in (loss, extra.get("mining", ""), variant) if part)
            chosen = {**settings, **extra}
            yield name, Recipe(factory, chosen)
            if hasattr(losses, _WRAPPER) and "num_classes" not in required(factory):
                yield f"{name}, memory", Recipe(factory, chosen, in_memory=True)


def _minings(factory: type[nn.Module], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The minings the loss takes, less those it refuses together with these settings; nothing else is one."""
    if "mining" not in inspect.signature(factory).parameters or "mining" in settings:
        return [{}]
    accepted = []
    for name in MINING:
        with suppress(ValueError):
            Recipe(factory, {**settings, "mining": name}).make()
            accepted.append({"mining": name})
    assert accepted, f"{factory.__name__} must take a mining, of {MINING}"
    return accepted

"""Every loss with its plain-loop twin, and the batches they are compared on."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dml import losses
from dml.arguments import constructor_arguments
from tests import reference

DIM = 16
NUM_CLASSES = 12


@dataclass(frozen=True)
class Case:
    """A loss by its kind, made with these settings."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self) -> losses.EmbeddingLoss:
        loss = losses.LOSSES[self.kind]
        sizes = (
            {"num_classes": NUM_CLASSES, "dim": DIM, "seed": 5} if issubclass(loss, losses.ProxyLoss) else {}
        )
        return loss(**{**sizes, **self.settings})

    def twin(self, x: Tensor, labels: Tensor, *parameters: Tensor) -> Tensor:
        """The same in plain loops: the function of tests/reference.py of the same name, and settings."""
        twin = getattr(reference, self.kind)
        arguments = constructor_arguments(losses.LOSSES[self.kind])
        defaults = {name: argument.default for name, argument in arguments.items()}
        wanted = [
            name
            for name, each in inspect.signature(twin).parameters.items()
            if each.kind is each.KEYWORD_ONLY
        ]
        return twin(x, labels, *parameters, **{name: {**defaults, **self.settings}[name] for name in wanted})


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "arcface": {
        "beyond pi": {"margin": 2.0, "scale": 4.0},
        "beyond pi as printed": {"margin": 2.0, "scale": 4.0, "beyond_pi": "cosine"},
    },
    "contrastive": {"plain hinges": {"positive_margin": 0.2, "negative_margin": 1.2, "squared": False}},
    "margin": {"of each class, nu": {"num_classes": NUM_CLASSES, "nu": 0.01, "alpha": 0.5}},
    "multi_similarity": {"no mining": {"epsilon": None, "base": 1.0}},
    "n_pair": {"scaled": {"scale": 16.0, "l2": 0}},
    "ranked_list": {"steep": {"temperature": 200.0}},
    "smooth_ap": {"warm": {"temperature": 0.1}},
    "soft_triple": {"one center": {"centers_per_class": 1}},
    "triplet_margin": {
        "semi_hard, plain": {"squared": False},
        "all, plain": {"mining": "all", "squared": False},
        "all, soft": {"mining": "all", "margin": None},
        **{
            f"{mining}, plain, soft": {"mining": mining, "margin": None, "squared": False}
            for mining in losses.MINING
            if mining != "semi_hard"
        },
    },
}
"""What is tried beside the defaults and every mining."""


def _cases() -> dict[str, Case]:
    cases = {}
    for kind, loss in losses.LOSSES.items():
        cases[loss.__name__] = Case(kind)
        for variant, settings in VARIANTS.get(kind, {}).items():
            cases[f"{loss.__name__}, {variant}"] = Case(kind, settings)
        if "mining" in constructor_arguments(loss):
            for mining in losses.MINING:
                cases[f"{loss.__name__}, {mining}"] = Case(kind, {"mining": mining})
    return cases


CASES = _cases()


def balanced() -> Tensor:
    return torch.arange(12) // 3


def uneven() -> Tensor:
    return torch.tensor([7, 0, 0, 3, 0, 0, 3, 5, 0, 1, 1, 1])


def one_class() -> Tensor:
    return torch.full((12,), 2)


def all_alone() -> Tensor:
    return torch.arange(12).flip(0)


def pairs() -> Tensor:
    return torch.arange(12) % 6


LABELS = [balanced, uneven, one_class, all_alone, pairs]


def scattered(seed: int = 0) -> Tensor:
    rows = torch.randn(12, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(rows + 0.7 * rows[:1])


def duplicates() -> Tensor:
    """Four directions, each thrice; the entries +-1/4 make every similarity, and so every tie, exact."""
    return _signs(4).repeat(3, 1)


def antipodal() -> Tensor:
    rows = _signs(3)
    return torch.cat([rows, -rows]).repeat(2, 1)


def _signs(num_rows: int) -> Tensor:
    signs = torch.randint(0, 2, (num_rows, DIM), generator=torch.Generator().manual_seed(1))
    return (signs * 2 - 1).double() / 4


EMBEDDINGS = [scattered, duplicates, antipodal]


def value_and_gradients(loss: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """The loss at x and its gradients at x and the parameters; a gradient that does not exist is zero."""
    x = x.detach().clone().requires_grad_()
    value = loss(x)
    gradients = torch.autograd.grad(value, [x, *parameters], allow_unused=True)
    return [
        value.detach(),
        *(
            torch.zeros_like(at) if g is None else g
            for g, at in zip(gradients, [x, *parameters], strict=True)
        ),
    ]

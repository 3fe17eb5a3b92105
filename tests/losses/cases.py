"""Every loss with its plain-loop twin, and the batches they are compared on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dml import losses
from tests import reference

DIM = 16
NUM_CLASSES = 12


@dataclass(frozen=True)
class Case:
    """A loss, and the same in plain loops from the embeddings, labels and the loss's own parameters."""

    make: Callable[[], nn.Module]
    twin: Callable[..., Tensor]


def _contrastive(**settings) -> Case:
    return Case(
        lambda: losses.Contrastive(**settings),
        lambda x, y: reference.contrastive(
            x,
            y,
            **{"positive_margin": 0.0, "negative_margin": 1.0, "squared": True, "mining": "all", **settings},
        ),
    )


def _triplet(**settings) -> Case:
    return Case(
        lambda: losses.TripletMargin(**settings),
        lambda x, y: reference.triplet(
            x, y, **{"mining": "semi-hard", "margin": 0.2, "squared": True, **settings}
        ),
    )


def _multi_similarity(**settings) -> Case:
    return Case(
        lambda: losses.MultiSimilarity(**settings),
        lambda x, y: reference.multi_similarity(
            x, y, **{"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": 0.1, **settings}
        ),
    )


def _margin(num_classes: int | None = None, **settings) -> Case:
    return Case(
        lambda: losses.Margin(num_classes, **settings),
        lambda x, y, beta: reference.margin_based(
            x, y, beta, **{"alpha": 0.2, "nu": 0.0, "mining": "distance-weighted", **settings}
        ),
    )


def _proxy(make: Callable[..., nn.Module], twin: Callable[..., Tensor]) -> Case:
    return Case(lambda: make(NUM_CLASSES, DIM, seed=5), twin)


TRIPLET_MINING = [name for name in losses.MINING if name not in ("all", "semi-hard")]

CASES = {
    "Contrastive": _contrastive(),
    "Contrastive, plain hinges": _contrastive(positive_margin=0.2, negative_margin=1.2, squared=False),
    "TripletMargin": _triplet(),
    "TripletMargin, semi-hard, plain": _triplet(squared=False),
    "TripletMargin, all": _triplet(mining="all"),
    "TripletMargin, all, plain": _triplet(mining="all", squared=False),
    "TripletMargin, all, soft": _triplet(mining="all", margin=None),
    "TripletMargin, batch-hard": _triplet(mining="batch-hard"),
    "TripletMargin, batch-hard, plain, soft": _triplet(mining="batch-hard", margin=None, squared=False),
    "MultiSimilarity": _multi_similarity(),
    "MultiSimilarity, no mining": _multi_similarity(epsilon=None, base=1.0),
    "Margin": _margin(),
    "Margin, of each class, nu": _margin(NUM_CLASSES, nu=0.01, alpha=0.5),
    **{f"TripletMargin, {mining}": _triplet(mining=mining) for mining in TRIPLET_MINING},
    **{
        f"TripletMargin, {mining}, plain, soft": _triplet(mining=mining, margin=None, squared=False)
        for mining in TRIPLET_MINING
    },
    **{f"Contrastive, {mining}": _contrastive(mining=mining) for mining in losses.MINING[1:]},
    **{f"Margin, {mining}": _margin(mining=mining) for mining in losses.MINING},
    "NPair": Case(losses.NPair, partial(reference.n_pair, scale=1.0, l2=0.005)),
    "NPair, scaled": Case(lambda: losses.NPair(16.0, l2=0), partial(reference.n_pair, scale=16.0, l2=0)),
    "LiftedStructure": Case(losses.LiftedStructure, partial(reference.lifted_structure, margin=1.0)),
    "RankedList": Case(
        losses.RankedList,
        partial(reference.ranked_list, boundary=1.2, margin=0.4, temperature=10, negative_weight=1),
    ),
    "RankedList, steep": Case(
        lambda: losses.RankedList(temperature=200.0),
        partial(reference.ranked_list, boundary=1.2, margin=0.4, temperature=200, negative_weight=1),
    ),
    "SmoothAP": Case(losses.SmoothAP, partial(reference.smooth_ap, temperature=0.01)),
    "SmoothAP, warm": Case(lambda: losses.SmoothAP(0.1), partial(reference.smooth_ap, temperature=0.1)),
    "RecallAtK": Case(
        losses.RecallAtK,
        partial(reference.recall_at_k, ks=(1, 2, 4, 8, 16), rank_temperature=0.01, cut_temperature=1.0),
    ),
    "SupCon": Case(losses.SupCon, partial(reference.supervised_contrastive, temperature=0.1)),
    "NTXent": Case(losses.NTXent, partial(reference.nt_xent, temperature=0.1)),
    "Circle": Case(losses.Circle, partial(reference.circle, margin=0.4, scale=80.0)),
    "GeneralisedLifted": Case(losses.GeneralisedLifted, partial(reference.generalised_lifted, margin=1.0)),
    "Softmax": _proxy(losses.Softmax, reference.softmax),
    "NormalisedSoftmax": _proxy(losses.NormalisedSoftmax, partial(reference.proxy_softmax, scale=20.0)),
    "CosFace": _proxy(losses.CosFace, partial(reference.proxy_softmax, scale=64.0, cosine_margin=0.35)),
    "ArcFace": _proxy(losses.ArcFace, partial(reference.proxy_softmax, scale=64.0, angular_margin=0.5)),
    "ArcFace, beyond pi": _proxy(
        partial(losses.ArcFace, margin=2.0, scale=4.0),
        partial(reference.proxy_softmax, scale=4.0, angular_margin=2.0),
    ),
    "ArcFace, beyond pi as printed": _proxy(
        partial(losses.ArcFace, margin=2.0, scale=4.0, beyond_pi="cosine"),
        partial(reference.proxy_softmax, scale=4.0, angular_margin=2.0, linear_beyond_pi=False),
    ),
    "ProxyNCA": _proxy(losses.ProxyNCA, partial(reference.proxy_nca, scale=9.0, ratio=True)),
    "ProxyNCAPlusPlus": _proxy(losses.ProxyNCAPlusPlus, partial(reference.proxy_nca, scale=9.0, ratio=False)),
    "ProxyAnchor": _proxy(losses.ProxyAnchor, partial(reference.proxy_anchor, margin=0.1, scale=32.0)),
    "SoftTriple": _proxy(
        losses.SoftTriple,
        partial(reference.soft_triple, scale=20.0, gamma=0.1, margin=0.01, tau=0.2),
    ),
    "SoftTriple, one centre": _proxy(
        partial(losses.SoftTriple, centres=1),
        partial(reference.soft_triple, scale=20.0, gamma=0.1, margin=0.01, tau=0.2),
    ),
}


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

"""Every loss is its formula, in value and in gradient, and stays finite at the formula's limits."""

import gc
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dml import losses
from dml.arguments import constructor_arguments
from dml.losses.core.blocks import max_block_values
from dml.losses.triplet_margin import count_by_sort, count_one_by_one
from tests import reference
from tests.losses.cases import (
    CASES,
    DIM,
    EMBEDDINGS,
    LABELS,
    balanced,
    scattered,
    uneven,
    value_and_gradients,
)

every_loss = pytest.mark.parametrize("name", CASES)


def compare(name: str, x: torch.Tensor, labels: torch.Tensor) -> None:
    module = CASES[name].make().double()
    parameters = list(module.parameters())
    actual = value_and_gradients(lambda x: module(x, labels), x, *parameters)
    expected = value_and_gradients(
        lambda x: CASES[name].twin(unit_rows(x) if module.normalize else x, labels, *parameters),
        x,
        *parameters,
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([row / row.square().sum().sqrt() for row in x])


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_every_loss_has_a_twin_an_example_and_a_row_in_the_docs_with_its_defaults(kind):
    loss = losses.LOSSES[kind]
    assert callable(getattr(reference, kind))
    assert ">>> " in loss.__doc__
    (row,) = [line for line in DOCS if line.startswith(f"| `{loss.__name__}`") and f"`{kind}` |" in line]
    defaults = row.split(" | ")[3]
    for name, argument in constructor_arguments(loss).items():
        shown = DEFAULTS_IN_WORDS.get((kind, name), _number(argument.default))
        if shown is not None and name not in COMMON:
            assert re.search(rf"(?<![\d.]){re.escape(shown)}(?![\d.])", defaults), (name, shown)


def _number(default: object) -> str | None:
    return f"{default:g}" if type(default) in (int, float) else None


DOCS = Path("docs/losses.md").read_text().splitlines()
COMMON = {"num_classes", "dim", "seed", "normalize", "sharded", "sample_rate"}
DEFAULTS_IN_WORDS = {("proxy_nca_plus_plus", "temperature"): "1/9", ("recall_at_k", "ks"): "1, 2, 4, 8, 16"}


@every_loss
@pytest.mark.parametrize("labels", LABELS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("embeddings", EMBEDDINGS, ids=lambda f: f.__name__)
def test_value_and_gradient_match_the_plain_loop(name, embeddings, labels):
    compare(name, embeddings(), labels())


@every_loss
@pytest.mark.parametrize("seed", range(4))
def test_value_and_gradient_match_the_plain_loop_on_random_labels(name, seed):
    generator = torch.Generator().manual_seed(seed)
    compare(name, scattered(seed), torch.randint(0, 3 + 2 * seed, (12,), generator=generator))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_gives_finite_gradients_and_a_float32_value(name, dtype):
    loss = CASES[name].make()
    for embeddings, labels in itertools.product(EMBEDDINGS, LABELS):
        x = embeddings().to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(x, labels())
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite(), (embeddings.__name__, labels.__name__)
        assert x.grad.isfinite().all(), (embeddings.__name__, labels.__name__)


@every_loss
@pytest.mark.parametrize("num_values", [1, 5 * 12, 100])
def test_blocks_of_anchors_or_classes_change_neither_value_nor_gradient(name, num_values):
    module = CASES[name].make().double().eval()
    parameters = list(module.parameters())

    def results():
        return value_and_gradients(lambda x: module(x, uneven()), scattered(), *parameters)

    whole = results()
    with max_block_values(num_values):
        torch.testing.assert_close(results(), whole, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("semi_hard", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_triplets_counted_by_sort_are_those_counted_one_by_one(seed, semi_hard):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 1 + 7 * seed), (5, 1 + seed % 6)]
    # Eighths, so that many are equal.
    negatives, positives = (torch.randint(-8, 9, s, generator=generator) / 8 for s in shapes)
    negatives[:, ::3] = -torch.inf
    bounds, ceilings = positives - 0.25, positives if semi_hard else None
    actual, expected = (count(negatives, bounds, ceilings) for count in (count_by_sort, count_one_by_one))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    ["Contrastive", "TripletMargin", "Margin", "MultiSimilarity", "NTXent", "LiftedStructure", "SmoothAP"],
)
def test_no_block_outlives_the_next(name):
    alive = []

    class LookAtEveryGather(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.Tensor.gather:
                alive.append(sum(other.shape == (4, 40) for other in _tensors()))
            return function(*args, **(kwargs or {}))

    x = torch.randn(40, DIM).requires_grad_()
    with max_block_values(4 * 40), LookAtEveryGather():
        CASES[name].make()(nn.functional.normalize(x), torch.arange(40) % 10)
    assert len(alive) >= 20
    assert max(alive[-6:]) <= max(alive[-15:-6]), "a later block finds no more matrices of its size"


def _tensors() -> list[torch.Tensor]:
    return [actual for actual in gc.get_objects() if type(actual) is torch.Tensor]


def _depends_on_order(name: str) -> bool:
    """Draws depend on an anchor's place, N-pairs on who comes first in a class."""
    draws = ("random", "soft_hard", "distance_weighted", "n_pair")
    named = name in ("Margin", "Margin, of each class, nu") or name.startswith("NPair")
    return named or any(draw in name for draw in draws) or (", semi_hard" in name and "Triplet" not in name)


@pytest.mark.parametrize("name", [name for name in CASES if not _depends_on_order(name)])
def test_order_of_the_batch_does_not_matter(name):
    module = CASES[name].make().double()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    x, labels = scattered(), uneven()
    torch.testing.assert_close(module(x[order], labels[order]), module(x, labels))


@every_loss
def test_labels_of_another_length_are_refused(name):
    with pytest.raises(ValueError, match="Pass one label for each row"):
        CASES[name].make()(scattered().float(), balanced()[:-1])


@every_loss
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32])
def test_labels_of_another_type_are_refused(name, dtype):
    """uint8 would index as a mask; int32 fails on W workers, where the gathered labels are int64."""
    with pytest.raises(ValueError, match=r"Pass labels\.long"):
        CASES[name].make()(scattered().float(), balanced().to(dtype))


@every_loss
def test_a_batch_without_images_is_refused(name):
    with pytest.raises(ValueError, match="at least one image"):
        CASES[name].make()(scattered().float()[:0], balanced()[:0])


def test_semi_hard_mining_needs_a_margin():
    with pytest.raises(ValueError, match=r"margin must be .*; got None"):
        losses.TripletMargin(None, mining="semi_hard")


@pytest.mark.parametrize(
    ("loss", "noun"), [(losses.ProxyAnchor(3, 16), "proxy"), (losses.Margin(3), "boundary")]
)
def test_a_label_without_a_proxy_or_boundary_is_refused(loss, noun):
    with pytest.raises(ValueError, match=f"one {noun} each; got 0 to 3"):
        loss(scattered().float(), balanced())


PUBLISHED = {
    "arcface": {"margin": 0.5, "scale": 64.0},
    "circle": {"margin": 0.4, "scale": 80.0},
    "contrastive": {"positive_margin": 0.0, "negative_margin": 1.0, "squared": True},
    "cosface": {"margin": 0.35, "scale": 64.0},
    "generalized_lifted_structure": {"margin": 1.0},
    "lifted_structure": {"margin": 1.0},
    "margin": {"alpha": 0.2, "beta": 1.2, "nu": 0.0, "mining": "distance_weighted"},
    "multi_similarity": {"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": 0.1},
    "n_pair": {"scale": 1.0, "l2": 0.02 / 4, "normalize": False},
    "normalized_softmax": {"temperature": 0.05},
    "nt_xent": {"temperature": 0.1},
    "proxy_anchor": {"margin": 0.1, "scale": 32.0},
    "proxy_nca": {"scale": 9.0},
    "proxy_nca_plus_plus": {"temperature": 1 / 9},
    "ranked_list": {"boundary": 1.2, "margin": 0.4, "temperature": 10.0, "negative_weight": 1.0},
    "recall_at_k": {"ks": (1, 2, 4, 8, 16), "rank_temperature": 0.01, "cut_temperature": 1.0},
    "smooth_ap": {"temperature": 0.01},
    "soft_triple": {"centers_per_class": 10, "scale": 20.0, "gamma": 0.1, "margin": 0.01, "tau": 0.2},
    "softmax": {},
    "sup_con": {"temperature": 0.1},
    "triplet_margin": {"margin": 0.2, "mining": "semi_hard", "squared": True},
}
"""What the source that a loss's docstring names has; docs/losses.md says where authors' codes differ."""


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_defaults_are_those_of_the_source_that_the_docstring_names(kind):
    loss = losses.LOSSES[kind]
    assert "Source: " in loss.__doc__
    arguments = constructor_arguments(loss)
    assert {name: arguments[name].default for name in PUBLISHED[kind]} == PUBLISHED[kind]


def hinge_cases() -> dict[str, tuple[losses.EmbeddingLoss, list[list[float]], list[int], float]]:
    """Batches in which a hinge is inactive, with the loss of the active ones by hand."""
    far = [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
    near = [[1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.6, 0.8]]
    corner = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]
    sum_of_two = math.log(2 * math.exp(1 - math.sqrt(2))) + 2  # both positives are sqrt(2) from the negative
    return {
        "lifted structure, inactive": (losses.LiftedStructure(), far, [0, 0, 1], 0.0),
        "generalized lifted structure, inactive": (
            losses.GeneralizedLiftedStructure(),
            far,
            [0, 0, 1],
            0.0,
        ),
        "contrastive, inactive": (losses.Contrastive(), far, [0, 0, 1], 0.0),
        "triplet, inactive": (losses.TripletMargin(mining="all"), far, [0, 0, 1], 0.0),
        "margin, inactive": (losses.Margin(mining="all"), far, [0, 0, 1], 0.0),
        "ranked list, inactive": (losses.RankedList(), far, [0, 0, 1], 0.0),
        "triplet, active": (losses.TripletMargin(mining="all"), near, [0, 0, 1, 1], (1.0 + 0.2) / 2),
        "lifted structure, one negative": (losses.LiftedStructure(), corner, [0, 0, 1], sum_of_two**2 / 2),
    }


@pytest.mark.parametrize("name", hinge_cases())
def test_a_hinge_is_zero_where_it_is_inactive_and_its_formula_where_it_is_active(name):
    """Positives coincide, negatives are 2 apart: lifted structure's log(2 e^(1 - 2)) is below 0 too."""
    loss, embeddings, labels, expected = hinge_cases()[name]
    value, gradient = value_and_gradients(lambda x: loss(x, torch.tensor(labels)), torch.tensor(embeddings))
    torch.testing.assert_close(float(value), expected)
    assert gradient.any() == (expected > 0)

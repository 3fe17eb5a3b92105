"""Every loss is its formula, in value and in gradient, and stays finite at the formula's limits."""

import gc

import pytest
import torch
from torch import nn

from dml import losses
from dml.losses import blocks
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
    ours = value_and_gradients(lambda x: module(x, labels), x, *parameters)
    twin = value_and_gradients(
        lambda x: CASES[name].twin(unit_rows(x) if module.normalize else x, labels, *parameters),
        x,
        *parameters,
    )
    torch.testing.assert_close(ours, twin, rtol=1e-9, atol=1e-11)


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([row / row.square().sum().sqrt() for row in x])


def _is_module(exported: object) -> bool:
    return isinstance(exported, type) and issubclass(exported, nn.Module)


def test_every_exported_loss_has_a_twin():
    exported = {name for name in losses.__all__ if _is_module(getattr(losses, name))} - {"CrossBatchMemory"}
    assert exported == {name.partition(",")[0] for name in CASES}


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
@pytest.mark.parametrize("labels", LABELS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("embeddings", EMBEDDINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_gives_finite_gradients_and_a_float32_value(name, embeddings, labels, dtype):
    x = embeddings().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = CASES[name].make()(x, labels())
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@every_loss
def test_blocks_of_anchors_or_classes_change_neither_value_nor_gradient(name, monkeypatch):
    module = CASES[name].make().double().eval()
    parameters = list(module.parameters())

    def results():
        return value_and_gradients(lambda x: module(x, uneven()), scattered(), *parameters)

    whole = results()
    monkeypatch.setattr("dml.losses.blocks._BLOCK_SIMILARITIES", 5 * 12)
    monkeypatch.setattr("dml.losses.blocks._LEAST_ROWS", 1)
    monkeypatch.setattr("dml.losses.soft._LEAST_ROWS", 2)
    monkeypatch.setattr("dml.losses.soft._BLOCK_LOGITS", 1)
    monkeypatch.setattr("dml.losses.class_blocks._KEPT_VALUES", 0)
    monkeypatch.setattr("dml.losses.class_blocks._BLOCK_VALUES", 100)
    torch.testing.assert_close(results(), whole, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("labels", LABELS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("embeddings", EMBEDDINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["TripletMargin", "TripletMargin, all", "TripletMargin, all, plain"])
def test_triplets_are_counted_by_sort_as_well(name, embeddings, labels, monkeypatch):
    monkeypatch.setattr("dml.losses.triplet._FEW_POSITIVES", 0)
    compare(name, embeddings(), labels())


@pytest.mark.parametrize(
    "name",
    ["Contrastive", "TripletMargin", "Margin", "MultiSimilarity", "NTXent", "LiftedStructure", "SmoothAP"],
)
def test_no_block_outlives_the_next(name, monkeypatch):
    alive, cut = [], blocks._Cut.pairs

    def spy(*arguments):
        pairs = cut(*arguments)
        alive.append(sum(tensor.shape == pairs.negatives.shape for tensor in _tensors()))
        return pairs

    monkeypatch.setattr(blocks._Cut, "pairs", spy)
    monkeypatch.setattr("dml.losses.blocks._BLOCK_SIMILARITIES", 1)
    monkeypatch.setattr("dml.losses.blocks._LEAST_ROWS", 4)
    x = torch.randn(40, DIM).requires_grad_()
    CASES[name].make()(nn.functional.normalize(x), torch.arange(40) % 10)
    assert len(alive) >= 10
    assert alive[9] <= alive[3], "the tenth block finds no more matrices of its size than the fourth"


def _tensors() -> list[torch.Tensor]:
    return [found for found in gc.get_objects() if type(found) is torch.Tensor]


def _depends_on_order(name: str) -> bool:
    """Draws depend on an anchor's place, N-pairs on who comes first in a class."""
    draws = ("random", "soft-hard", "distance-weighted", "n-pair")
    named = name in ("Margin", "Margin, of each class, nu") or name.startswith("NPair")
    return named or any(draw in name for draw in draws) or (", semi-hard" in name and "Triplet" not in name)


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
    with pytest.raises(ValueError, match="one image or more"):
        CASES[name].make()(scattered().float()[:0], balanced()[:0])


def test_semi_hard_mining_needs_a_margin():
    with pytest.raises(ValueError, match="Give a margin"):
        losses.TripletMargin(None, mining="semi-hard")


@pytest.mark.parametrize(
    ("loss", "noun"), [(losses.ProxyAnchor(3, 16), "proxy"), (losses.Margin(3), "boundary")]
)
def test_a_label_without_a_proxy_or_boundary_is_refused(loss, noun):
    with pytest.raises(ValueError, match=f"one {noun} each; got 0 to 3"):
        loss(scattered().float(), balanced())

"""What holds for every loss on any batch: turned, relabelled, scaled or shuffled it is the same loss."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dml import losses
from tests.losses.cases import DIM, NUM_CLASSES, Case

few_examples = settings(max_examples=8, deadline=None, derandomize=True, database=None)
batches = st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(0, 2**31))
every_loss = pytest.mark.parametrize("kind", losses.LOSSES)
without_proxies = pytest.mark.parametrize(
    "kind", [kind for kind, loss in losses.LOSSES.items() if not issubclass(loss, losses.ProxyLoss)]
)
DRAWS = {"margin"}  # by an anchor's row
BY_ORDER = {"n_pair", *DRAWS}  # a class's first and second image


def batch(labels: list[int], seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), DIM, dtype=torch.float64, generator=generator)
    return nn.functional.normalize(x + x[:1]), torch.tensor(labels), generator


def loss_of(kind: str) -> losses.EmbeddingLoss:
    return Case(kind).make().double().eval()


@without_proxies
@given(batches)
@few_examples
def test_a_rotation_of_all_embeddings_changes_nothing(kind, drawn):
    x, y, generator = batch(*drawn)
    rotation, _ = torch.linalg.qr(torch.randn(DIM, DIM, dtype=torch.float64, generator=generator))
    loss = loss_of(kind)
    torch.testing.assert_close(loss(x @ rotation, y), loss(x, y), rtol=1e-6, atol=1e-9)


@without_proxies
@given(batches)
@few_examples
def test_other_class_ids_for_the_same_classes_change_nothing(kind, drawn):
    x, y, generator = batch(*drawn)
    loss = loss_of(kind)
    others = torch.randperm(1000, generator=generator)[y] - 500  # negative ones too
    torch.testing.assert_close(loss(x, others), loss(x, y), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in losses.LOSSES if kind not in BY_ORDER])
@given(batches)
@few_examples
def test_the_order_of_the_batch_changes_nothing(kind, drawn):
    x, y, generator = batch(*drawn)
    order = torch.randperm(len(y), generator=generator)
    loss = loss_of(kind)
    torch.testing.assert_close(loss(x[order], y[order]), loss(x, y), rtol=1e-9, atol=1e-12)


@every_loss
@given(batches)
@few_examples
def test_a_loss_is_finite_with_a_finite_gradient_and_negative_only_where_its_docstring_says_so(kind, drawn):
    x, y, _ = batch(*drawn)
    loss = loss_of(kind)
    value = loss(x.requires_grad_(), y)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert value >= -1e-12 or "below 0" in losses.LOSSES[kind].__doc__


@every_loss
@given(batches)
@few_examples
def test_a_small_step_against_the_gradient_lowers_the_loss_by_its_square(kind, drawn):
    x, y, _ = batch(*drawn)
    loss = loss_of(kind)
    value = loss(x.requires_grad_(), y)
    (gradient,) = torch.autograd.grad(value, x)
    gain = gradient.square().sum()
    assume(gain >= 1e-8)
    steps = [float((loss(x.detach() - rate * gradient, y) - value).detach()) for rate in (1e-9, 2e-9)]
    # Weights that carry no gradient (circle, ranked list) change the slope, not its sign.
    if kind not in WEIGHTS_WITHOUT_GRADIENT:
        assert steps[0] == pytest.approx(-1e-9 * float(gain), rel=1e-2, abs=1e-13)
    assert max(steps) <= 1e-13


WEIGHTS_WITHOUT_GRADIENT = {"circle", "ranked_list"}


@pytest.mark.parametrize("kind", [kind for kind in losses.LOSSES if loss_of(kind).normalize])
@given(batches)
@few_examples
def test_the_lengths_of_the_embeddings_change_nothing(kind, drawn):
    x, y, generator = batch(*drawn)
    lengths = torch.empty(len(y), 1, dtype=torch.float64).log_normal_(0, 3, generator=generator)
    loss = loss_of(kind)
    torch.testing.assert_close(loss(x * lengths, y), loss(x, y), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "kind", [kind for kind, loss in losses.LOSSES.items() if issubclass(loss, losses.ProxyLoss)]
)
@given(batches)
@few_examples
def test_proxies_rotated_with_the_embeddings_change_nothing(kind, drawn):
    x, y, generator = batch(*drawn)
    rotation, _ = torch.linalg.qr(torch.randn(DIM, DIM, dtype=torch.float64, generator=generator))
    loss = loss_of(kind)
    assert loss.num_classes == NUM_CLASSES
    before = loss(x, y).detach()
    with torch.no_grad():
        loss.proxies.copy_(loss.proxies @ rotation)
    torch.testing.assert_close(loss(x @ rotation, y).detach(), before, rtol=1e-6, atol=1e-9)

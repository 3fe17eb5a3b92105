"""Inner products and distances of unit vectors, value and gradient, at their edges too."""

import pytest
import torch
from torch import nn

from dml import similarity

X = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_similarities_of_half_precision_are_computed_in_float32(dtype):
    x, y = X.to(dtype), Y.to(dtype)
    similarities = similarity.cosine_similarities(x, y)
    assert similarities.dtype == torch.float32
    torch.testing.assert_close(similarities, x.float() @ y.float().T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_and_double_precision_stay_what_they_are(dtype):
    assert similarity.cosine_similarities(X.to(dtype), Y.to(dtype)).dtype == dtype
    assert similarity.at_least_float32(X.to(dtype)).dtype == dtype


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_autocast_changes_neither_a_product_nor_its_gradients(wanted):
    x, y = (each.float().clone().requires_grad_(need) for each, need in zip((X, Y), wanted, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity.product(x, y.T).sin().sum().backward()
    slope = (X @ Y.T).cos().float()
    expected = (slope @ Y.float(), slope.T @ X.float())
    for each, gradient, need in zip((x, y), expected, wanted, strict=True):
        if need:
            torch.testing.assert_close(each.grad, gradient, rtol=1e-5, atol=1e-5)
        else:
            assert each.grad is None


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_vectors_of_any_length_become_unit_vectors_with_the_exact_gradient(scale):
    x = (scale * X).requires_grad_()
    unit = similarity.unit_length(x)
    plain = X.clone().requires_grad_()
    torch.testing.assert_close(unit, nn.functional.normalize(plain))
    (grad,) = torch.autograd.grad(unit.sin().sum(), x)
    (expected,) = torch.autograd.grad(nn.functional.normalize(plain).sin().sum(), plain)
    torch.testing.assert_close(grad * scale, expected)


@pytest.mark.parametrize("tiny", [0.0, 1e-310])
def test_a_vector_without_direction_becomes_zero_and_gets_no_gradient(tiny):
    x = X.clone()
    x[2] = tiny
    x.requires_grad_()
    unit = similarity.unit_length(x)
    (grad,) = torch.autograd.grad(unit.sum(), x)
    assert not unit[2].any()
    assert not grad[2].any()
    torch.testing.assert_close(unit[:2], nn.functional.normalize(X[:2]))


def test_a_vector_that_is_not_finite_has_no_direction():
    for value in (torch.inf, torch.nan):
        assert similarity.unit_length(torch.tensor([[1.0, value], [3.0, 4.0]]))[0].isnan().any()


def test_distances_are_those_of_the_points():
    x, y = nn.functional.normalize(X), nn.functional.normalize(Y)
    expected = (x[:, None] - y[None]).norm(dim=-1)
    torch.testing.assert_close(similarity.distances(x @ y.T), expected)
    torch.testing.assert_close(similarity.squared_distances(x @ y.T), expected.square())


@pytest.mark.parametrize(
    ("value", "squared", "distance"),
    [(1.0, 0.0, 0.0), (1 + 1e-6, 0.0, 0.0), (0.0, 2.0, 2**0.5), (-1.0, 4.0, 2.0)],
)
def test_distances_at_their_ends(value, squared, distance):
    s = torch.tensor(value, dtype=torch.float64)
    assert float(similarity.squared_distances(s)) == squared
    assert float(similarity.distances(s)) == pytest.approx(distance)


def test_the_gradient_of_a_distance_is_the_derivative_and_at_zero_it_is_zero():
    s = torch.tensor([0.5, -0.9, 1.0, -torch.inf], dtype=torch.float64, requires_grad=True)
    actual = similarity.distances(s)
    (grad,) = torch.autograd.grad(actual, s, torch.tensor([1.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(grad[:2], torch.tensor([-1.0, -2 / 3.8**0.5], dtype=torch.float64))
    assert grad[2:].abs().max() < 1e-12
    assert actual[3] > 1e9, "where there is no vector, it is farther than any"


def test_the_inverse_of_a_distance_is_zero_at_zero():
    actual = similarity.inverse_or_zero(torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64))
    torch.testing.assert_close(actual, torch.tensor([0.0, 2.0, 0.5], dtype=torch.float64))

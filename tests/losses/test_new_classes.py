"""A loss takes in new classes: the old ones stay what they were, on one worker and in shards."""

from functools import partial

import pytest
import torch
from torch import Tensor

from dml import losses
from dml.training.spawn import run_ranks
from tests.losses.cases import DIM, scattered, uneven
from tests.losses.test_shards import Learner, place, whole, wrapped

MAKERS = {
    "CosFace": losses.CosFace,
    "Softmax": losses.Softmax,
    "ProxyAnchor": losses.ProxyAnchor,
    "SoftTriple": partial(losses.SoftTriple, centers_per_class=2),
}


def extended(sharded: bool) -> dict[str, list[Tensor]]:
    """Of every loss: all rows after three steps with 9 classes, five new ones, and three more steps."""
    return {name: _extended(make, sharded) for name, make in MAKERS.items()}


def _extended(make, sharded: bool) -> list[Tensor]:
    rank, world_size = place()
    module = Learner(make(9, DIM, seed=5, sharded=sharded))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)

    def steps(first: int, num_classes: int) -> None:
        learner = wrapped(module)
        for step in range(first, first + 3):
            labels = (uneven() + step) % num_classes
            optimizer.zero_grad()
            images = scattered(seed=step).chunk(world_size)[rank]
            learner(images, labels.chunk(world_size)[rank]).backward()
            optimizer.step()

    steps(0, 9)
    means = torch.randn(5, *module.loss.proxies.shape[1:], generator=torch.Generator().manual_seed(2))
    losses.append_classes(module.loss, 5, directions=means.double(), optimizer=optimizer)
    steps(3, 14)
    shards = losses.named_shards(module)
    return [
        whole(p.detach(), shards[name]) if name in shards else p.detach()
        for name, p in module.named_parameters()
    ]


@pytest.mark.slow
def test_in_shards_adding_classes_and_training_on_equals_one_process():
    alone = extended(sharded=False)
    for of_rank in run_ranks(3, extended, True):
        torch.testing.assert_close(of_rank, alone, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", MAKERS)
def test_old_classes_keep_proxies_and_moments_and_new_ones_start_as_in_a_larger_loss(name):
    loss = MAKERS[name](9, DIM, seed=5)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=0.01)
    loss(scattered().float(), uneven()).backward()
    optimizer.step()
    before = loss.proxies.detach().clone()
    moments = optimizer.state[loss.proxies]["exp_avg"].clone()
    losses.append_classes(loss, 5, optimizer=optimizer)
    assert loss.num_classes == 14
    torch.testing.assert_close(loss.proxies[:9].detach(), before, rtol=0, atol=0)
    state = optimizer.state[loss.proxies]
    torch.testing.assert_close(state["exp_avg"][:9], moments, rtol=0, atol=0)
    assert not state["exp_avg"][9:].any()
    fresh = torch.nn.functional.normalize(MAKERS[name](14, DIM, seed=5).proxies, dim=-1)
    torch.testing.assert_close(torch.nn.functional.normalize(loss.proxies, dim=-1)[9:], fresh[9:])
    loss(scattered().float(), uneven() + 6).backward()
    assert loss.proxies.grad.shape == loss.proxies.shape


def test_the_optimizer_s_other_parameters_stay_where_they_are():
    loss, other = losses.CosFace(9, DIM), torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([other, *loss.parameters()], lr=0.1)
    losses.append_classes(loss, 5, optimizer=optimizer)
    first, second = optimizer.param_groups[0]["params"]
    assert first is other
    assert second is loss.proxies


def test_given_directions_are_taken_at_the_length_of_the_others():
    loss = losses.CosFace(9, DIM)
    means = torch.randn(2, DIM)
    losses.append_classes(loss, 2, directions=means)
    torch.testing.assert_close(torch.cosine_similarity(loss.proxies[9:], means), torch.ones(2))
    length = loss.proxies[:9].norm(dim=1).mean()
    torch.testing.assert_close(loss.proxies[9:].norm(dim=1), length.expand(2))


@pytest.mark.parametrize("shape", [(3, DIM), (2, DIM + 1), (2,)])
def test_directions_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(2, 16\); got .* Pass one direction for each new class"):
        losses.append_classes(losses.CosFace(9, DIM), 2, directions=torch.zeros(shape))


@pytest.mark.parametrize("num_new", [0, -1, 2.5, True, float("nan")])
def test_a_number_of_new_classes_that_is_none_is_refused(num_new):
    with pytest.raises(ValueError, match=r"num_new must be an integer in \[1, 2\*\*63\)"):
        losses.append_classes(losses.CosFace(9, DIM), num_new)

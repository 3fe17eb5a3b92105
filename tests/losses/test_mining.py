"""Miners draw what they say, as often as they say, and again after a restart."""

import pytest
import torch
from torch import nn

from dml import losses
from dml.losses.core.rng import CounterRNG
from tests.losses.cases import balanced, scattered


def test_draws_are_uniform_and_differ_between_calls_anchors_and_columns():
    rows = torch.arange(4000)
    first = CounterRNG(3, torch.tensor(0)).uniform(rows, 3)
    second = CounterRNG(3, torch.tensor(1)).uniform(rows, 3)
    for numbers in (first, second):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = torch.histc(numbers, 20, 0, 1)
        assert ((counts - 600).abs() < 6 * 600**0.5).all()
    columns = torch.cat([first, second], 1).T
    correlations = torch.corrcoef(columns) - torch.eye(6)
    assert correlations.abs().max() < 0.08


def test_a_draw_does_not_depend_on_which_other_anchors_are_there():
    whole = CounterRNG(1, torch.tensor(5)).uniform(torch.arange(100), 4)
    part = CounterRNG(1, torch.tensor(5)).uniform(torch.arange(40, 60), 4)
    assert torch.equal(whole[40:60], part)


def test_any_seed_of_torch_draws():
    rows, call = torch.arange(8), torch.tensor(0)
    assert not torch.equal(
        CounterRNG(2**64 - 1, call).uniform(rows, 1), CounterRNG(2**63 - 1, call).uniform(rows, 1)
    )


def test_the_first_columns_are_the_same_however_many_follow():
    rows, rng = torch.arange(50), CounterRNG(4, torch.tensor(2))
    assert torch.equal(rng.uniform(rows, 5, stream=3)[:, :1], rng.uniform(rows, 1, stream=3))


def test_a_draw_is_the_same_in_any_release_so_that_a_run_can_be_resumed():
    drawn = CounterRNG(3, torch.tensor(2)).uniform(torch.tensor([0, 7]), 2, stream=1)
    assert (drawn * 2**24).tolist() == [[5090889, 7194991], [4936950, 9841301]]


@pytest.mark.parametrize("mining", ["random", "soft_hard", "distance_weighted", "semi_hard"])
def test_another_call_draws_anew_and_a_resumed_one_draws_the_same(mining):
    def new() -> losses.Margin:
        return losses.Margin(mining=mining, alpha=1.0).double()

    x, y = scattered(), balanced()
    loss = new()
    values = [float(loss(x, y).detach()) for _ in range(6)]
    assert len(set(values)) > 1
    resumed = new()
    resumed.load_state_dict({**resumed.state_dict(), "num_calls": torch.tensor(3)})
    assert [float(resumed(x, y).detach()) for _ in range(3)] == values[3:]
    loss.eval()
    assert torch.equal(loss(x, y), loss(x, y)), "in evaluation nothing moves on"


def test_distances_drawn_by_their_weight_are_nearly_uniform():
    """Of random vectors in 128 dimensions nearly all are at 1.41; drawn ones spread down to the closest."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(500, 1, generator=generator)
    anchor = nn.functional.normalize(torch.randn(1, 128, generator=generator))
    others = nn.functional.normalize(torch.randn(500, 128, generator=generator) * 0.09 + spread * anchor)
    x = torch.cat([anchor, anchor, others]).requires_grad_()
    labels = torch.cat([torch.zeros(2, dtype=torch.int64), 1 + torch.arange(500)])

    def mean_distance_drawn(mining: str) -> float:
        drawn = []
        loss = losses.TripletMargin(2.0, mining=mining, squared=False)
        for _ in range(40):
            (gradient,) = torch.autograd.grad(loss(x, labels), x)
            drawn += [int(n) for n in gradient[2:].abs().sum(1).nonzero()[:, 0]]
        return float((others[drawn] - anchor).norm(dim=1).mean())

    assert mean_distance_drawn("distance_weighted") < mean_distance_drawn("random") - 0.1


def test_weights_do_not_vanish_in_high_dimensions():
    """One confusable pair of classes must not take the draws of all other anchors (D = 512, float32)."""
    generator = torch.Generator().manual_seed(0)
    x = nn.functional.normalize(torch.randn(64, 512, generator=generator) + 0.6)
    x[4:8] = x[0:4]
    labels = torch.arange(64) // 4
    kept = []
    miner = losses.DistanceWeightedMiner()

    def spy(pairs):
        kept.append(miner(pairs))
        return kept[-1]

    losses.TripletMargin(mining=spy)(x, labels)
    assert torch.cat([tuples.is_kept.any(1) for tuples in kept]).all()
    assert all((tuples.negatives[tuples.is_kept] > -1).all() for tuples in kept)


def test_a_name_that_is_no_miner_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="distance_weighted"):
        losses.Contrastive(mining="semihard")

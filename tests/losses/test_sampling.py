"""Partial-FC: a softmax over the batch's own classes and a sample of the others, the same on every rank."""

import pytest
import torch
from torch import Tensor

from dml import losses
from tests import reference
from tests.losses.cases import DIM, scattered, uneven, value_and_gradients

NUM_CLASSES = 40


def with_gradient(loss: losses.CosFace) -> Tensor:
    """Which proxies the next batch gives a gradient."""
    loss.proxies.grad = None
    loss(scattered(), uneven()).backward()
    return loss.proxies.grad.any(1)


def make(**settings) -> losses.CosFace:
    return losses.CosFace(
        NUM_CLASSES, DIM, **{"seed": 5, "sample_rate": 0.3, "normalize": False, **settings}
    ).double()


def test_it_is_the_loss_over_the_sampled_rows_and_no_other_row_has_a_gradient():
    x, labels = scattered(), uneven()
    sampled = with_gradient(make()).nonzero()[:, 0]
    assert len(labels.unique()) < len(sampled) < NUM_CLASSES
    loss = make()
    actual = value_and_gradients(lambda x: loss(x, labels), x, loss.proxies)
    index = torch.searchsorted(sampled, labels)

    def twin(x: Tensor) -> Tensor:
        return reference.cosface(x, index, loss.proxies[sampled], margin=0.35, scale=64.0)

    torch.testing.assert_close(actual, value_and_gradients(twin, x, loss.proxies))


def test_every_batch_has_its_own_classes_and_another_sample_that_the_state_resumes():
    loss = make()
    samples = [with_gradient(loss) for _ in range(6)]
    assert all(sample[uneven()].all() for sample in samples)
    assert len({tuple(sample.tolist()) for sample in samples}) == 6
    again = make()
    for _ in range(3):
        with_gradient(again)
    resumed = make(seed=5)
    resumed.load_state_dict(again.state_dict())
    assert torch.equal(with_gradient(resumed), samples[3])


def test_evaluation_is_over_all_classes_and_leaves_the_count():
    loss = make().eval()
    assert with_gradient(loss).all()
    assert loss.num_calls == 0


def test_a_rate_of_one_is_the_whole_loss():
    torch.testing.assert_close(
        make(sample_rate=1.0)(scattered(), uneven()), make(sample_rate=None)(scattered(), uneven())
    )


def test_draws_have_the_rate_and_are_independent_between_calls_and_neighbours():
    loss = losses.CosFace(200_000, 2, seed=1, sample_rate=0.1)
    first, second = torch.zeros(2, loss.num_classes, dtype=torch.float64)
    for sample in (first, second):
        sample[loss._sample(torch.tensor([0]))] = 1
        assert abs(float(sample.mean()) - 0.1) < 0.003
    assert abs(float((first * second).mean()) - 0.01) < 0.001
    assert abs(float((first[1:] * first[:-1]).mean()) - 0.01) < 0.001


@pytest.mark.parametrize("rate", [0.0, 1.5, -1.0])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match=r"sample_rate must be a number in \(0, 1\] or None"):
        make(sample_rate=rate)

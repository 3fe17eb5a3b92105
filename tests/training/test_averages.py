"""The copies of the encoder that a run keeps: their moving average, and the best."""

import copy

import pytest
import torch

from dml.config import EncoderConfig
from dml.models.encoder import Encoder
from dml.training.averages import AveragedEncoder, BestEncoder


def disturb(encoder: Encoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in encoder.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


def test_the_average_is_the_weighted_sum_of_the_weights_seen():
    encoder = Encoder(EncoderConfig(dim=4), channels=1).double()
    average = AveragedEncoder(encoder, decay=0.3)
    expected = copy.deepcopy(encoder.state_dict())
    for step in range(6):
        disturb(encoder, step)
        average.update(encoder, step)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in encoder.state_dict().items():
            if name.endswith("num_batches_tracked"):
                expected[name] = value
            else:
                expected[name] = decay * expected[name] + (1 - decay) * value
    torch.testing.assert_close(dict(average.encoder.state_dict()), dict(expected))


def test_batch_norm_statistics_are_averaged_and_counts_are_copied():
    encoder = Encoder(EncoderConfig(dim=4), channels=1)
    average = AveragedEncoder(encoder, decay=0.9)
    disturb(encoder, 0)
    average.update(encoder, step=10**6)
    averaged, current = average.encoder.state_dict(), encoder.state_dict()
    torch.testing.assert_close(averaged["backbone.1.running_mean"], 0.1 * current["backbone.1.running_mean"])
    assert averaged["backbone.1.num_batches_tracked"] == 1


def test_the_average_has_no_gradient_and_does_not_move_with_the_encoder():
    encoder = Encoder(EncoderConfig(dim=4), channels=1)
    average = AveragedEncoder(encoder, decay=0.9)
    before = average.encoder.head.weight.clone()
    disturb(encoder, 0)
    assert torch.equal(average.encoder.head.weight, before)
    assert not any(p.requires_grad for p in average.parameters())


@pytest.mark.parametrize(
    ("values", "step"), [([0.1, 0.3, 0.2], 2), ([0.3, 0.3, 0.3], 1), ([0.0, 0.0], 1)], ids=str
)
def test_the_best_is_the_first_of_the_highest(values, step):
    encoder = Encoder(EncoderConfig(dim=4), channels=1)
    best, kept = BestEncoder(encoder), []
    for number, value in enumerate(values, start=1):
        disturb(encoder, number)
        kept.append(copy.deepcopy(encoder.state_dict()))
        best.offer(encoder, number, value)
    assert (int(best.step), float(best.value)) == (step, max(values))
    assert all(torch.equal(v, kept[step - 1][k]) for k, v in best.encoder.state_dict().items())

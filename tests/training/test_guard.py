"""A run stops at the first number that is none, and says which, where, and what to try."""

import numpy as np
import pytest
import torch
from torch import nn

from dml.config import EncoderConfig, OptimizerConfig
from dml.errors import TrainingFailed
from dml.models.encoder import Encoder
from dml.training.guard import Guard
from dml.training.optimizer import build_optimizer, clip_gradients
from dml.training.spawn import run_ranks
from dml.training.worker import Worker


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 1)


def guard_of(module: nn.Module, worker: Worker | None = None) -> Guard:
    return Guard(module, worker or Worker(), lambda positions: [f"image-{p}" for p in positions])


def graded(value: float = 1.0) -> Pair:
    module = Pair()
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)
    return module


def test_numbers_pass_and_come_back():
    assert guard_of(graded()).observe(3, np.arange(2), torch.tensor(0.25)) == [0.25]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_loss_that_is_no_number_names_step_images_and_remedies(value):
    with pytest.raises(TrainingFailed, match=r"loss.*step 7.*image-4.*clip_norm"):
        guard_of(graded()).observe(7, np.array([4, 5]), torch.tensor(value))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_first_gradient_that_is_no_number_is_named_though_the_loss_is_one(value):
    module = graded()
    module.second.weight.grad[0, 1] = value
    module.second.bias.grad[0] = value
    with pytest.raises(TrainingFailed, match=r"loss of 0\.5 that of second\.weight is (nan|inf) at step 7"):
        guard_of(module).observe(7, np.arange(2), torch.tensor(0.5))


def test_huge_gradients_are_numbers():
    assert guard_of(graded(1e15)).observe(0, np.arange(2), torch.tensor(0.5)) == [0.5]


def test_clipping_does_not_hide_which_gradient_it_was():
    encoder, loss = Encoder(EncoderConfig(dim=4), channels=1), nn.Linear(4, 3)
    optimizer = build_optimizer(OptimizerConfig(), encoder, loss)
    for parameter in [*encoder.parameters(), *loss.parameters()]:
        parameter.grad = torch.ones_like(parameter)
    encoder.head.bias.grad[2] = torch.nan
    clip_gradients(optimizer, 1.0)
    with pytest.raises(TrainingFailed, match=r"that of head\.bias is nan"):
        guard_of(encoder).observe(0, np.arange(2), torch.tensor(0.5))


def on_a_rank() -> str:
    rank = torch.distributed.get_rank()
    with pytest.raises(TrainingFailed) as caught:
        guard_of(graded(), Worker(rank, 2)).observe(
            1, np.array([rank * 10, rank * 10 + 1]), torch.tensor(torch.nan)
        )
    return str(caught.value)


def test_the_images_are_those_of_all_workers_in_rank_order():
    first, second = run_ranks(2, on_a_rank)
    assert first == second
    assert "['image-0', 'image-1', 'image-10', 'image-11']" in first

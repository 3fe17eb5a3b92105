"""Rates are pure functions of the step, and every parameter has the group it should."""

import math

import pytest
import torch
from torch import nn

from dml.config import EncoderConfig, OptimizerConfig
from dml.models.encoder import Encoder
from dml.training.optimizer import build_optimizer, clip_gradients, rate_factor, set_rates


def test_warm_up_is_linear_then_the_cosine_ends_at_zero():
    config = OptimizerConfig(warmup_steps=4, schedule="cosine")
    factors = [rate_factor(config, step, 104) for step in range(104)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[54] == pytest.approx(0.5)
    assert factors == sorted(factors[:4]) + sorted(factors[4:], reverse=True)
    assert 0 < factors[-1] < 1e-3


def test_a_constant_schedule_is_constant():
    config = OptimizerConfig(schedule="constant")
    assert {rate_factor(config, step, 10) for step in range(10)} == {1.0}


@pytest.mark.parametrize("milestones", [(0.4, 0.75), (8, 15)], ids=["shares", "steps"])
def test_steps_multiply_by_gamma_at_each_milestone_after_the_warm_up(milestones):
    config = OptimizerConfig(schedule="step", milestones=milestones, gamma=0.3, warmup_steps=2)
    factors = [rate_factor(config, step, 20) for step in range(20)]
    assert factors == pytest.approx([0.5, 1.0] + [1.0] * 6 + [0.3] * 7 + [0.09] * 5)


def test_the_losss_parameters_may_have_a_decay_of_their_own():
    encoder, loss = Encoder(EncoderConfig(dim=4), channels=1), nn.Linear(4, 3)
    for decay, expected in ((None, 0.1), (0.0, 0.0)):
        config = OptimizerConfig(weight_decay=0.1, loss_weight_decay=decay)
        groups = build_optimizer(config, encoder, loss).param_groups
        assert [group["weight_decay"] for group in groups] == [0.1, 0.1, expected]


def test_adam_decays_through_the_gradient_and_adamw_beside_it():
    weights = {}
    for kind in ("adam", "adamw"):
        encoder, loss = Encoder(EncoderConfig(dim=4), channels=1), nn.Linear(4, 3)
        nn.init.ones_(loss.weight)
        config = OptimizerConfig(kind=kind, loss_learning_rate=0.01, weight_decay=0.1)
        loss.weight.grad = torch.zeros_like(loss.weight)
        build_optimizer(config, encoder, loss).step()
        weights[kind] = float(loss.weight.detach()[0, 0])
    assert weights["adam"] == pytest.approx(1 - 0.01), "a full step, however small the decay"
    assert weights["adamw"] == pytest.approx(1 - 0.01 * 0.1)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_backbone_head_and_loss_have_rates_of_their_own(kind):
    encoder = Encoder(EncoderConfig(dim=4, layer_norm=True), channels=1)
    loss = nn.Linear(4, 3)
    config = OptimizerConfig(kind=kind, learning_rate=0.1, head_learning_rate=0.2, loss_learning_rate=0.3)
    optimizer = build_optimizer(config, encoder, loss)
    set_rates(optimizer, 0.5)
    rate_of = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate_of[p] for p in encoder.backbone.parameters()} == {0.05}
    assert {rate_of[p] for p in [*encoder.head.parameters(), *encoder.norm.parameters()]} == {0.1}
    assert {rate_of[p] for p in loss.parameters()} == {0.15}
    assert len(rate_of) == len(list(encoder.parameters())) + len(list(loss.parameters()))


def test_gradients_are_clipped_to_the_common_norm_or_left_alone():
    encoder, loss = Encoder(EncoderConfig(dim=4), channels=1), nn.Linear(4, 3)
    optimizer = build_optimizer(OptimizerConfig(), encoder, loss)
    parameters = [*encoder.parameters(), *loss.parameters()]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 10.0)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in parameters))
    clip_gradients(optimizer, None)
    assert math.sqrt(sum(float(p.grad.square().sum()) for p in parameters)) == pytest.approx(norm)
    clip_gradients(optimizer, 1.0)
    assert math.sqrt(sum(float(p.grad.square().sum()) for p in parameters)) == pytest.approx(1.0, rel=1e-4)

"""The optimizer, with separate learning rates for backbone, head and loss parameters, and its schedule."""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from dml.config import OptimizerConfig
from dml.losses.core.shards import Shard, sum_over_shards
from dml.models.encoder import Encoder

_LOSS_RATE_FACTOR = 100.0  # proxies learn this much faster: Kim et al. 2020, arXiv:2003.13911, sec. 4.1


def build_optimizer(config: OptimizerConfig, encoder: Encoder, loss: nn.Module) -> Optimizer:
    """The optimizer of encoder and loss; each group stores its base learning rate as `base_lr`."""
    head_rate = config.head_learning_rate or config.learning_rate
    loss_rate = config.loss_learning_rate or config.learning_rate * _LOSS_RATE_FACTOR
    decay = config.weight_decay
    loss_decay = decay if config.loss_weight_decay is None else config.loss_weight_decay
    backbone = set(encoder.backbone.parameters())
    groups = [
        (config.learning_rate, decay, [p for p in encoder.backbone.parameters() if p.requires_grad]),
        (head_rate, decay, [p for p in encoder.parameters() if p.requires_grad and p not in backbone]),
        (loss_rate, loss_decay, list(loss.parameters())),
    ]
    parameters = [
        {"params": params, "lr": rate, "base_lr": rate, "weight_decay": weight_decay}
        for rate, weight_decay, params in groups
        if params
    ]
    # One kernel for all parameters on a GPU; None: torch chooses.
    fused = True if next(encoder.parameters()).is_cuda else None
    match config.kind:
        case "sgd":
            return SGD(parameters, momentum=config.momentum, fused=fused)
        case "adam":
            return Adam(parameters, fused=fused)
        case "adamw":
            return AdamW(parameters, fused=fused)


def rate_factor(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """The factor of the base learning rates at a step: a pure function, so that resuming needs no state.

    Linear warm-up to 1; then constant, or a cosine to 0 over the remaining steps, or multiplied by gamma at
    each milestone.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    match config.schedule:
        case "constant":
            return 1.0
        case "cosine":
            progress = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "step":
            milestones = [round(at * num_steps) if at < 1 else at for at in config.milestones]
            return float(config.gamma ** sum(step >= milestone for milestone in milestones))


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradients(
    optimizer: Optimizer, max_norm: float | None, shards: Mapping[nn.Parameter, Shard] | None = None
) -> None:
    """Clip the total norm of all gradients.

    If the norm is not finite, gradients are not changed: scaling would make all of them NaN, and the guard
    could not name the first one.

    Args:
        optimizer: optimizer of all parameters.
        max_norm: maximum norm of all gradients together; None: no clipping.
        shards: sharded parameters; their squares are summed over ranks, so that the norm is that of the
            complete gradient and equal on every rank.
    """
    if max_norm is None:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p not in (shards or {})])
    if shards:
        local_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p in shards])
        world_size = next(iter(shards.values())).world_size
        norm = (norm.square() + sum_over_shards(local_norm.square(), world_size)).sqrt()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, torch.where(norm.isfinite(), norm, 0.0))

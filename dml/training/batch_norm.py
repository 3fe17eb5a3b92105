"""Batch norm over the global batch on CPU workers, where torch's SyncBatchNorm only knows GPUs.

Without it every worker would normalise by its own share, and W workers would train another model than one.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverRanks(torch.autograd.Function):
    """Sum a tensor over ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose batch statistics are those of all ranks' images (B, C, H, W) together."""

    def forward(self, images: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(images)
        count = images.numel() // images.shape[1] * dist.get_world_size()
        # Two passes: E[x^2] - E[x]^2 loses the digits that W workers and one must agree on.
        mean = _SumOverRanks.apply(images.sum((0, 2, 3)) / count)
        centred = images - mean[:, None, None]
        variance = _SumOverRanks.apply(centred.square().sum((0, 2, 3)) / count)
        self._update_running(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        normalised = centred * (variance + self.eps).rsqrt()[:, None, None]
        scaled: Tensor = normalised * self.weight[:, None, None] + self.bias[:, None, None]
        return scaled

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every trained 2-d batch norm by one over all ranks: torch's own on GPUs, ours on CPUs."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d and child.affine:
            twin = GlobalBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
            twin.load_state_dict(child.state_dict())
            for parameter, original in zip(twin.parameters(), child.parameters(), strict=True):
                parameter.requires_grad_(original.requires_grad)
            setattr(module, name, twin.train(child.training))
        else:
            synchronise_batch_norm(child, device)
    return module

"""Batch norm over the global batch, on CPUs and GPUs alike.

Without it every worker would normalise by its own share, and W workers would train another model than one.
On GPUs torch's SyncBatchNorm does it, in kernels of its own: one collective forward and one backward, and no
second copy of the images. It knows only GPUs, so CPUs have `GlobalBatchNorm2d`. Both keep the activation that
timm has inside its batch norms.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, autograd, nn

from dml.errors import InvalidSetting
from dml.similarity import at_least_float32


class _SumOverRanks(autograd.Function):
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
    """`torch.nn.BatchNorm2d` whose batch statistics are those of all ranks' images (B, C, H, W) together.

    Args:
        original: the batch norm it takes the place of; its parameters and statistics are shared, and what
            timm's does after normalising (`drop`, `act`) is done here too.
    """

    def __init__(self, original: nn.BatchNorm2d) -> None:
        super().__init__(original.num_features, eps=original.eps, momentum=original.momentum)
        self.drop, self.act = _take_over(self, original)

    def forward(self, images: Tensor) -> Tensor:
        if self.training and dist.is_initialized() and dist.get_world_size() > 1:
            normalized = self._normalize(at_least_float32(images)).to(images.dtype)
        else:
            normalized = super().forward(images)
        activated: Tensor = self.act(self.drop(normalized))
        return activated

    def _normalize(self, images: Tensor) -> Tensor:
        count = images.numel() // images.shape[1] * dist.get_world_size()
        # Two passes: E[x^2] - E[x]^2 loses the digits that W workers and one must agree on.
        mean = _SumOverRanks.apply(images.sum((0, 2, 3)) / count)
        centered = images - mean[:, None, None]
        variance = _SumOverRanks.apply(centered.square().sum((0, 2, 3)) / count)
        self._update_running(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        normalized: Tensor = centered * (variance + self.eps).rsqrt()[:, None, None]
        return normalized * self.weight[:, None, None] + self.bias[:, None, None]

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


class GlobalBatchNormOnGpus(nn.SyncBatchNorm):
    """The same on GPUs; on a CPU it can be evaluated, and trained in one process.

    Args:
        original: as of `GlobalBatchNorm2d`.
    """

    def __init__(self, original: nn.BatchNorm2d) -> None:
        super().__init__(original.num_features, eps=original.eps, momentum=original.momentum)
        self.drop, self.act = _take_over(self, original)

    def forward(self, images: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(images)))
        return activated


def _take_over(layer: nn.Module, original: nn.BatchNorm2d) -> tuple[nn.Module, nn.Module]:
    """Share the original's parameters and statistics; returns its dropout and activation (timm)."""
    layer.weight, layer.bias = original.weight, original.bias
    for name, buffer in original.named_buffers():
        setattr(layer, name, buffer)
    layer.train(original.training)
    drop, act = getattr(original, "drop", None), getattr(original, "act", None)
    return drop or nn.Identity(), act or nn.Identity()


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Replace every batch norm below a module by one over all ranks.

    Args:
        module: an encoder.
        device: where it trains.

    Raises:
        InvalidSetting: a batch norm of another kind than torch's and timm's 2-d ones.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            known = type(child) is nn.BatchNorm2d or type(child).__name__ == "BatchNormAct2d"
            if not (known and isinstance(child, nn.BatchNorm2d) and child.affine):
                raise InvalidSetting(
                    f"Several workers can share BatchNorm2d and timm's BatchNormAct2d; this backbone has a "
                    f"{type(child).__name__} at {name!r}. Train it with num_workers=1, or freeze_batch_norm."
                )
            kind = GlobalBatchNormOnGpus if device.type == "cuda" else GlobalBatchNorm2d
            setattr(module, name, kind(child))
        else:
            synchronize_batch_norm(child, device)

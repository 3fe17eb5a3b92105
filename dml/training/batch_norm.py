"""Batch norm over the global batch, on CPUs and GPUs alike.

Without it every worker would normalise by its own share, and W workers would train another model than one.
torch's SyncBatchNorm knows only GPUs, and would drop the activation that timm keeps inside its batch norms.
"""

from typing import Any

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
        self.weight, self.bias = original.weight, original.bias
        for name, buffer in original.named_buffers():
            setattr(self, name, buffer)
        self.drop = getattr(original, "drop", None) or nn.Identity()
        self.act = getattr(original, "act", None) or nn.Identity()
        self.train(original.training)

    def forward(self, images: Tensor) -> Tensor:
        if self.training and dist.is_initialized() and dist.get_world_size() > 1:
            normalised = self._normalise(at_least_float32(images)).to(images.dtype)
        else:
            normalised = super().forward(images)
        activated: Tensor = self.act(self.drop(normalised))
        return activated

    def _normalise(self, images: Tensor) -> Tensor:
        count = images.numel() // images.shape[1] * dist.get_world_size()
        # Two passes: E[x^2] - E[x]^2 loses the digits that W workers and one must agree on.
        mean = _SumOverRanks.apply(images.sum((0, 2, 3)) / count)
        centred = images - mean[:, None, None]
        variance = _SumOverRanks.apply(centred.square().sum((0, 2, 3)) / count)
        self._update_running(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        normalised: Tensor = centred * (variance + self.eps).rsqrt()[:, None, None]
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronise_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm below a module by one over all ranks.

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
            setattr(module, name, GlobalBatchNorm2d(child))
        else:
            synchronise_batch_norm(child)

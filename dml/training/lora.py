"""Low-rank adapters: a backbone's layers learn small updates of their weights, which are merged at the end.

    W' = W + alpha / rank * U V        U (rows, rank), V (rank, columns); W stays as it was

Hu et al. 2021, arXiv:2106.09685, sec. 4.1. A convolution's weights (O, I, h, w) are taken as O rows of I h w
columns. The updated weights are computed as such and not as a second path beside the layer: they are what a
merged layer holds, to the bit. The optimizer's moments and what workers exchange become small; activations
do not.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dml.config import LoraConfig
from dml.errors import InvalidSetting
from dml.models.encoder import Encoder


class LowRankUpdate(nn.Module):
    """The weights of a layer with an update of low rank; zero at first.

    Args:
        weight: (rows, ...) of the layer.
        config: rank, at most that of the weights, and alpha.
    """

    def __init__(self, weight: Tensor, config: LoraConfig) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(config.rank, rows, columns)
        self.scale = config.alpha / config.rank
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.down = nn.Parameter(torch.empty(rank, columns))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        # In float32 also under autocast, or the merged weights would be others than the trained ones.
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.up @ self.down).view_as(weight)


def add_adapters(backbone: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Freeze a backbone, and give its linear layers and convolutions low-rank updates that train.

    Depthwise and other grouped convolutions have none: their weights are small.

    Args:
        backbone: changed in place.
        config: rank and alpha.
        seed: decides the updates' first weights, and nothing else does.

    Raises:
        InvalidSetting: the backbone has no such layers.
    """
    backbone.requires_grad_(False)
    layers = [
        layer
        for layer in backbone.modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    if not layers:
        raise InvalidSetting(
            "initial.tune 'lora' needs linear layers or convolutions; the backbone has none. Set "
            "initial.tune=whole."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", LowRankUpdate(layer.weight, config))


def merge_adapters(encoder: Encoder) -> Encoder:
    """The same encoder with plain layers; itself where it has no adapters."""
    if not any(map(parametrize.is_parametrized, encoder.modules())):
        return encoder
    merged = copy.deepcopy(encoder)
    for layer in list(merged.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            # Not by `remove_parametrizations`: it changes the class, which the copied layer has, too.
            weight = layer.weight
            assert isinstance(weight, Tensor)
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            layer.weight = nn.Parameter(weight.detach())
    return merged

"""The encoder: backbone, pooling, and a linear head onto the unit sphere."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.config import EncoderConfig
from dml.errors import InvalidSetting
from dml.models.backbones import build_backbone, freeze_batch_norm

_GEM_EPSILON = 1e-6


class GeneralizedMeanPooling(nn.Module):
    """(mean x^p)^(1/p) over positions, p learnt. Radenovic et al. 2018, arXiv:1711.02512, sec. 3.2."""

    def __init__(self, power: float = 3.0) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power))

    def forward(self, features: Tensor) -> Tensor:
        raised = features.float().clamp_min(_GEM_EPSILON).pow(self.power)
        return raised.mean((2, 3)).pow(1.0 / self.power)


def _pool(features: Tensor, pooling: str) -> Tensor:
    if pooling == "avg":
        return features.mean((2, 3))
    if pooling == "max":
        return features.amax((2, 3))
    return features.mean((2, 3)) + features.amax((2, 3))  # as Kim et al.'s code of Proxy-Anchor


class Encoder(nn.Module):
    """Images (B, c, H, W) to unit-length float32 embeddings (B, D), also under autocast.

    With `config.unit_length` false they keep their lengths in training mode; in evaluation mode they have
    unit length all the same.

    Args:
        config: backbone, pooling and dimension.
        channels: of the images, 1 or 3.
        seed: decides the new weights, and nothing else does.
        initialise: load the weights the configuration names; False when a package's weights follow.
    """

    def __init__(
        self, config: EncoderConfig, *, channels: int, seed: int = 0, initialize: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        own_pooling = config.pooling == "own"
        if own_pooling and config.backbone.kind not in ("timm", "transformers"):
            raise InvalidSetting(
                f"pooling 'own' is what a timm or transformers backbone brings; got backbone "
                f"{config.backbone.kind!r}. Choose avg, max, avg+max or gem."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone, num_features = build_backbone(
                config.backbone, channels=channels, initialize=initialize, own_pooling=own_pooling
            )
            self.gem = GeneralizedMeanPooling() if config.pooling == "gem" else None
            self.norm = nn.LayerNorm(num_features) if config.layer_norm else None
            self.dropout = nn.Dropout(config.dropout) if config.dropout else None
            self.head: nn.Module = (
                nn.Identity() if config.head == "none" else nn.Linear(num_features, config.dim)
            )
        if config.head == "none" and config.dim != num_features:
            raise InvalidSetting(
                f"encoder.dim must be {num_features}, the backbone's features, where encoder.head is 'none'; "
                f"got {config.dim}. Set encoder.dim={num_features}."
            )
        if config.freeze_batch_norm:
            freeze_batch_norm(self.backbone)

    def train(self, mode: bool = True) -> Self:
        """As every module, but a frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if mode and self.config.freeze_batch_norm:
            freeze_batch_norm(self.backbone)
        return self

    def features(self, images: Tensor) -> Tensor:
        """Pooled backbone features, (B, C), before the head."""
        features: Tensor = self.backbone(images)
        if self.config.pooling != "own":
            if features.ndim != 4:
                raise InvalidSetting(
                    f"pooling {self.config.pooling!r} needs a feature map (B, C, h, w); this backbone gives "
                    f"{tuple(features.shape)}. Set encoder.pooling to 'own'."
                )
            features = self.gem(features) if self.gem else _pool(features, self.config.pooling)
        return self.norm(features) if self.norm else features

    def head_output(self, images: Tensor) -> Tensor:
        """(B, D) float32 embeddings before normalization, of any length."""
        features = self.features(images)
        if self.dropout:
            features = self.dropout(features)
        output: Tensor = self.head(features)
        return output.float()

    def forward(self, images: Tensor) -> Tensor:
        # Length one must hold to float32's precision, so the division leaves autocast.
        output = self.head_output(images)
        keeps_length = self.training and not self.config.unit_length
        return output if keeps_length else F.normalize(output, dim=1)

"""From a loss's configuration to the module; its first weights depend on the seed alone."""

import torch
from torch import nn

from dml.config import ContrastiveConfig, LossConfig, MultiSimilarityConfig, ProxyAnchorConfig, TripletConfig
from dml.losses import Contrastive, MultiSimilarity, ProxyAnchor, TripletMargin


def build_loss(config: LossConfig, *, dim: int, num_classes: int, seed: int) -> nn.Module:
    """The loss a configuration names.

    Args:
        config: which one, with its settings.
        dim: D, length of the embeddings.
        num_classes: C of the training split; labels are in [0, C).
        seed: of the proxies' first values.
    """
    match config:
        case ContrastiveConfig():
            return Contrastive(config.positive_margin, config.negative_margin)
        case TripletConfig():
            return TripletMargin(config.margin, mining=config.mining, squared=config.squared)
        case MultiSimilarityConfig():
            return MultiSimilarity(config.alpha, config.beta, config.base, config.epsilon)
        case ProxyAnchorConfig():
            generator = torch.Generator().manual_seed(seed)
            return ProxyAnchor(num_classes, dim, config.margin, config.scale, generator=generator)

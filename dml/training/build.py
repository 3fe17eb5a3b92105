"""The loss a configuration names."""

import torch
from torch import nn

from dml import config as configs
from dml import losses


def build_loss(config: configs.LossConfig, *, dim: int, num_classes: int, seed: int) -> nn.Module:
    """The loss with its initial weights, which depend on the seed alone.

    Args:
        config: which loss, and its settings.
        dim: length of an embedding.
        num_classes: C, classes of the training split, labelled 0 to C - 1.
        seed: of the initial weights.
    """
    settings = config.model_dump(exclude={"kind"})
    generator = torch.Generator().manual_seed(seed)
    match config.kind:
        case "contrastive":
            return losses.Contrastive(**settings)
        case "triplet":
            return losses.TripletMargin(**settings)
        case "multi-similarity":
            return losses.MultiSimilarity(**settings)
        case "sup-con":
            return losses.SupCon(**settings)
        case "nt-xent":
            return losses.NTXent(**settings)
        case "circle":
            return losses.Circle(**settings)
        case "generalised-lifted":
            return losses.GeneralisedLifted(**settings)
        case "normalised-softmax":
            return losses.NormalisedSoftmax(num_classes, dim, generator=generator, **settings)
        case "cosface":
            return losses.CosFace(num_classes, dim, generator=generator, **settings)
        case "arcface":
            return losses.ArcFace(num_classes, dim, generator=generator, **settings)
        case "proxy-nca":
            return losses.ProxyNCA(num_classes, dim, generator=generator, **settings)
        case "proxy-anchor":
            return losses.ProxyAnchor(num_classes, dim, generator=generator, **settings)

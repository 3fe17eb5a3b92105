"""The loss a configuration names."""

import torch
from torch import nn

from dml import config as configs
from dml import losses


def build_loss(
    config: configs.LossConfig,
    *,
    dim: int,
    num_classes: int,
    seed: int,
    memory: configs.MemoryConfig | None = None,
) -> nn.Module:
    """The loss with its initial weights, which depend on the seed alone.

    Args:
        config: which loss, and its settings.
        dim: length of an embedding.
        num_classes: C, classes of the training split, labelled 0 to C - 1.
        seed: of the initial weights, and of what a miner draws.
        memory: of former batches around it, or None.
    """
    loss = _build_alone(config, dim, num_classes, seed)
    return loss if memory is None else losses.CrossBatchMemory(loss, dim=dim, **memory.model_dump())


def _build_alone(config: configs.LossConfig, dim: int, num_classes: int, seed: int) -> nn.Module:
    settings = config.model_dump(exclude={"kind"})
    generator = torch.Generator().manual_seed(seed)
    match config.kind:
        case "contrastive":
            return losses.Contrastive(seed=seed, **settings)
        case "triplet":
            return losses.TripletMargin(seed=seed, **settings)
        case "margin":
            per_class = settings.pop("per_class")
            return losses.Margin(num_classes if per_class else None, seed=seed, **settings)
        case "n-pair":
            return losses.NPair(l2=0.0, **settings)
        case "lifted-structure":
            return losses.LiftedStructure(**settings)
        case "ranked-list":
            return losses.RankedList(**settings)
        case "smooth-ap":
            return losses.SmoothAP(**settings)
        case "recall-at-k":
            return losses.RecallAtK(**settings)
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

"""The loss and the sampler a configuration names."""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dml import config as configs
from dml import losses
from dml.data import sampling
from dml.data.dataset import read_values
from dml.data.schema import TRAIN
from dml.refs import DatasetRef


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
    # An encoder's embeddings have length 1 already.
    settings = {**config.model_dump(exclude={"kind"}), "normalize": False}
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
            return losses.GeneralizedLiftedStructure(**settings)
        case "softmax":
            return losses.Softmax(num_classes, dim, seed=seed, **settings)
        case "normalised-softmax":
            return losses.NormalizedSoftmax(num_classes, dim, seed=seed, **settings)
        case "cosface":
            return losses.CosFace(num_classes, dim, seed=seed, **settings)
        case "arcface":
            return losses.ArcFace(num_classes, dim, seed=seed, **settings)
        case "proxy-nca":
            return losses.ProxyNCA(num_classes, dim, seed=seed, **settings)
        case "proxy-nca++":
            return losses.ProxyNCAPlusPlus(num_classes, dim, seed=seed, **settings)
        case "soft-triple":
            centers = settings.pop("centres")
            return losses.SoftTriple(num_classes, dim, seed=seed, centers_per_class=centers, **settings)
        case "proxy-anchor":
            return losses.ProxyAnchor(num_classes, dim, seed=seed, **settings)


def build_sampler(
    config: configs.BatchesConfig,
    dataset: DatasetRef,
    class_ids: NDArray[np.int64],
    *,
    learnt: NDArray[np.bool_],
    stream: sampling.Stream,
) -> sampling.BatchSampler:
    """The batches of a run.

    Args:
        config: which sampler, and its settings.
        dataset: where attributes of the training rows are read.
        class_ids: (N,) the classes of the rows learnt from.
        learnt: which of the training split's rows they are.
        stream: which batches, and whose part of them.

    Raises:
        InvalidSetting: the data or the workers do not allow such batches.
    """
    settings = config.model_dump(exclude={"kind", "attribute", "momentum"})
    match config.kind:
        case "pk":
            return sampling.PKBatchSampler(class_ids, **settings, stream=stream)
        case "attribute":
            values, names = read_values(dataset, config.attribute, split=TRAIN)
            return sampling.AttributeBatchSampler(
                class_ids, values[learnt], value_names=names, **settings, stream=stream
            )
        case "similar":
            return sampling.SimilarClassBatchSampler(class_ids, **settings, stream=stream)
        case "shuffled":
            return sampling.ShuffledBatchSampler(len(class_ids), **settings, stream=stream)

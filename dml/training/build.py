"""Builds the loss and the sampler of a configuration."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dml import config as configs
from dml import losses
from dml.arguments import constructor_arguments
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
    unit_length: bool = True,
) -> nn.Module:
    """The loss with its initial weights, which depend only on the seed.

    Args:
        config: kind and settings of the loss.
        dim: length of an embedding.
        num_classes: C, classes of the training split, labelled 0 to C - 1.
        seed: of the initial weights and of random miners.
        memory: settings of a cross-batch memory, or None.
        unit_length: whether the embeddings have length 1, and need no normalization by the loss; False: the
            loss normalizes as it does by default, softmax not at all.
    """
    loss = _build_alone(config, dim, num_classes, seed, unit_length)
    return loss if memory is None else losses.CrossBatchMemory(loss, dim=dim, **memory.model_dump())


def _build_alone(
    config: configs.LossConfig, dim: int, num_classes: int, seed: int, unit_length: bool
) -> losses.EmbeddingLoss:
    loss_class = losses.LOSSES[config.kind]
    run: dict[str, Any] = {
        "num_classes": num_classes if getattr(config, "per_class", True) else None,
        "dim": dim,
        "seed": seed,
    }
    if unit_length:
        run["normalize"] = False
    arguments = constructor_arguments(loss_class)
    settings = config.model_dump(exclude={"kind", "per_class"})
    return loss_class(**settings, **{name: value for name, value in run.items() if name in arguments})


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
        config: kind and settings of the sampler.
        dataset: dataset with the attributes of the training rows.
        class_ids: (N,) classes of the rows used for training.
        learnt: mask of these rows in the training split.
        stream: seed, steps and the part of this worker.

    Raises:
        InvalidSetting: the data or the number of workers do not allow these batches.
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

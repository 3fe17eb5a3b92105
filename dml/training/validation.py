"""Validation during training: retrieval metrics on held-out training classes.

Test classes are not used. The held-out classes depend only on the seed and the training classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dml.config import ValidationConfig
from dml.config.training import Precision
from dml.data.sampling.permutations import permutation
from dml.errors import InvalidSetting
from dml.metrics.retrieval import retrieval_metrics
from dml.models.encoder import Encoder
from dml.models.precision import autocast
from dml.refs import BestStep
from dml.training.worker import Worker

# Images per chunk. Each worker embeds whole chunks, so that an image is in the same batch, and has exactly
# the same embedding, for any number of workers.
_CHUNK_ROWS = 64
_VALIDATION_SEED = 0x56414C  # a different random stream than that of the sampler


def held_out_classes(num_classes: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """(C,) mask of the held-out training classes: a fraction of them, at least two.

    Raises:
        InvalidSetting: fewer than two classes remain for training.
    """
    count = max(round(fraction * num_classes), 2)
    if num_classes - count < 2:
        raise InvalidSetting(
            f"Validation needs two held-out and two training classes; this split has {num_classes}. "
            "Set training.validation to null, or train on more classes."
        )
    held_out = np.zeros(num_classes, dtype=np.bool_)
    held_out[permutation(num_classes, (seed << 24) + _VALIDATION_SEED)[:count]] = True
    return held_out


@dataclass(frozen=True)
class ValidationSet:
    """Images of held-out classes.

    Args:
        class_ids: (N,) class of each image.
        images: maps ascending rows of this set to images (n, c, H, W) float32, preprocessed like in the
            package.
    """

    class_ids: NDArray[np.int64]
    images: Callable[[NDArray[np.int64]], Tensor]

    def __post_init__(self) -> None:
        if not (np.bincount(self.class_ids) > 1).any():
            raise InvalidSetting(
                "Validation needs a class with two images; none of the held-out classes has two. Raise "
                "training.validation.fraction, or set training.validation to null."
            )


def validate(
    encoder: Encoder,
    config: ValidationConfig,
    validation: ValidationSet,
    step: int,
    worker: Worker,
    *,
    precision: Precision = "float32",
) -> BestStep:
    """The validation metric of an encoder in evaluation mode; every worker must call it.

    Args:
        encoder: equal on all workers; its mode is restored.
        config: the metric.
        validation: images to embed, distributed over the workers.
        step: number of steps done.
        worker: this worker.
        precision: precision of the encoder.

    Returns:
        The same value on every worker: rank 0 computes it and broadcasts it.
    """
    embeddings = _embed(encoder, validation, worker, precision)
    value = torch.zeros((), dtype=torch.float64, device=worker.device)
    if worker.rank == 0:
        labels = torch.from_numpy(validation.class_ids).to(worker.device)
        value.fill_(retrieval_metrics(embeddings, labels, recall_at=(1,)).as_dict()[config.metric])
    if worker.world_size > 1:
        dist.broadcast(value, src=0)
    return BestStep(step=step, metric=config.metric, value=float(value))


@torch.no_grad()
def _embed(encoder: Encoder, validation: ValidationSet, worker: Worker, precision: Precision) -> Tensor:
    """(N, D) embeddings of the whole set on every worker."""
    num_rows = len(validation.class_ids)
    embeddings = torch.zeros(num_rows, encoder.config.dim, device=worker.device)
    was_training = [module for module in encoder.modules() if module.training]
    encoder.eval()
    for start in worker.share(range(0, num_rows, _CHUNK_ROWS)):
        rows = np.arange(start, min(start + _CHUNK_ROWS, num_rows))
        images = validation.images(rows).to(worker.device, memory_format=torch.channels_last)
        with autocast(precision, worker.device):
            embeddings[rows[0] : rows[-1] + 1] = encoder(images)
    for module in was_training:
        module.training = True
    if worker.world_size > 1:
        dist.all_reduce(embeddings)  # each row is nonzero on one worker only, so the sum is exact
    return embeddings

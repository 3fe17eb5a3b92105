"""One small case of every sampler, built alike."""

from collections.abc import Callable

import numpy as np

from dml.data.sampling import (
    AttributeBatchSampler,
    BatchSampler,
    PKBatchSampler,
    ShuffledBatchSampler,
    SimilarClassBatchSampler,
    Stream,
)


def uneven(num_classes: int, seed: int = 0) -> np.ndarray:
    """Class ids of 1 to 11 rows a class, in random order."""
    sizes = np.random.default_rng(seed).integers(1, 12, num_classes)
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(num_classes), sizes))


def unit_vectors(num_classes: int, seed: int = 0, dim: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num_classes, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pk(class_ids: np.ndarray, p: int, k: int, num_steps: int = 100, **stream) -> BatchSampler:
    return PKBatchSampler(
        class_ids, classes_per_batch=p, samples_per_class=k, stream=Stream(num_steps, **stream)
    )


def attribute(class_ids: np.ndarray, p: int, k: int, num_steps: int = 100, **stream) -> BatchSampler:
    return AttributeBatchSampler(
        class_ids,
        class_ids % 3,
        classes_per_batch=p,
        samples_per_class=k,
        stream=Stream(num_steps, **stream),
    )


def similar(class_ids: np.ndarray, p: int, k: int, num_steps: int = 100, **stream) -> BatchSampler:
    return SimilarClassBatchSampler(
        class_ids,
        classes_per_batch=p,
        samples_per_class=k,
        refresh_every_steps=7,
        class_vectors=unit_vectors(int(class_ids.max()) + 1),
        stream=Stream(num_steps, **stream),
    )


def shuffled(class_ids: np.ndarray, p: int, k: int, num_steps: int = 100, **stream) -> BatchSampler:
    return ShuffledBatchSampler(len(class_ids), batch_size=p * k, stream=Stream(num_steps, **stream))


MAKERS: list[Callable[..., BatchSampler]] = [pk, attribute, similar, shuffled]
CLASS_MAKERS: list[Callable[..., BatchSampler]] = [pk, attribute, similar]

"""Batch samplers: pure functions of (seed, step, rank, W), each usable as a torch `BatchSampler`.

`DataLoader(dataset, batch_sampler=PKBatchSampler(class_ids, ..., stream=Stream(num_steps=1000)))` in your own
loop. On W workers, pass each rank and W to `Stream`; each rank gets its part of the same global batches.
"""

from dml.data.sampling.attribute import AttributeBatchSampler
from dml.data.sampling.pk import ClassBatchSampler, PKBatchSampler
from dml.data.sampling.shuffled import ShuffledBatchSampler
from dml.data.sampling.similar import SimilarClassBatchSampler
from dml.data.sampling.stream import BatchSampler, Stream

__all__ = [
    "AttributeBatchSampler",
    "BatchSampler",
    "ClassBatchSampler",
    "PKBatchSampler",
    "ShuffledBatchSampler",
    "SimilarClassBatchSampler",
    "Stream",
]

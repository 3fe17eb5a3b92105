"""Which rows make a batch: pure functions of (seed, step, rank, W), each a torch `BatchSampler`.

`DataLoader(dataset, batch_sampler=PKBatchSampler(class_ids, ..., stream=Stream(num_steps=1000)))` in your own
loop. On W workers each rank gives `Stream` its rank and W, and gets its part of the same global batches.
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

"""Which rows make a batch: pure functions of (seed, step, rank, W), each a torch `BatchSampler`.

`DataLoader(dataset, batch_sampler=PKBatchSampler(class_ids, ...))` in anybody's loop; on W workers each rank
gives its rank and W, and takes its part of the same global batches.
"""

from dml.data.sampling.attribute import AttributeBatchSampler
from dml.data.sampling.pk import ClassBatches, PKBatchSampler
from dml.data.sampling.shuffled import ShuffledBatchSampler
from dml.data.sampling.similar import SimilarClassBatchSampler
from dml.data.sampling.stream import BatchStream

__all__ = [
    "AttributeBatchSampler",
    "BatchStream",
    "ClassBatches",
    "PKBatchSampler",
    "ShuffledBatchSampler",
    "SimilarClassBatchSampler",
]

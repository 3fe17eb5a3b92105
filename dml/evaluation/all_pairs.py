"""Passes over all pairs of a split in blocks of rows, in this process or in parallel on Ray.

Every block of queries searches the whole gallery, so the results equal those of a single pass.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from operator import add
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dml.cluster import capacity, map_remote, on_cluster, ray_session
from dml.config import EvaluationConfig
from dml.evaluation.query_gallery import Rows, query_gallery
from dml.metrics.pair_counts import Levels, PairCounts, count_pairs, levels_for
from dml.metrics.ranking import Items
from dml.metrics.retrieval import QueryMetrics, joined, query_metrics
from dml.metrics.verification import RocCurve, roc_of_counts

OnProgress = Callable[[int, int], None]
PAIRS_HERE = 10**10
"""Up to this number of pairs, one process is enough: all pairs of 100,000 rows."""
PAIRS_PER_BLOCK = 1 << 33
_BLOCKS_PER_WORKER = 4  # balances workers of different speed


class _Movable(Protocol):
    def cpu(self) -> Self: ...


R = TypeVar("R", bound=_Movable)


def workers_for(num_rows: int, *, pairs_here: int = PAIRS_HERE, num_gpus: int | None = None) -> int:
    """The number of Ray workers for an evaluation: on a cluster one per GPU, or one per core without GPUs.

    On a single machine it is one per GPU, because torch uses all cores.

    Args:
        num_rows: rows of the split.
        pairs_here: up to this number of pairs, one process is enough.
        num_gpus: GPUs of a single machine; None: those of this one.
    """
    if num_rows * num_rows <= pairs_here:
        return 1
    if not on_cluster():
        return max(torch.cuda.device_count() if num_gpus is None else num_gpus, 1)
    with ray_session():
        return max(capacity("GPU").most or capacity("CPU").most, 1)


def query_values(
    embeddings: Tensor,
    rows: Rows,
    config: EvaluationConfig,
    *,
    num_workers: int = 1,
    pairs_per_block: int = PAIRS_PER_BLOCK,
    progress: OnProgress | None = None,
) -> QueryMetrics:
    """All retrieval metrics of every query; `rows` of the result are indices among the queries.

    Args:
        embeddings: (N, D), unit length.
        rows: labels and attributes of the embeddings.
        config: query and gallery sets, and metrics.
        num_workers: Ray workers; 1: this process.
        pairs_per_block: block size for one process; progress is reported after each block.
        progress: called with (blocks done, number of blocks).

    Raises:
        InvalidData: by `config.role_attribute` there is no query, or no gallery item.
    """
    queries, gallery = query_gallery(embeddings, rows, config)
    num_queries = len(queries.labels)
    num_pairs = num_queries * len(gallery.labels)
    blocks = _even(num_queries, _num_blocks(num_pairs, num_workers, pairs_per_block))
    parts = _map_blocks(partial(_block_metrics, config), [queries, gallery], blocks, num_workers, progress)
    return joined(list(parts), [block.stop - block.start for block in blocks])


def roc_of_rows(
    embeddings: Tensor,
    rows: Rows,
    *,
    false_accept_rates: Sequence[float] = (0.1,),
    num_workers: int = 1,
    pairs_per_block: int = PAIRS_PER_BLOCK,
    progress: OnProgress | None = None,
) -> RocCurve:
    """Verification on all pairs of rows, like `roc_of_all_pairs`, in blocks.

    Args:
        embeddings: (N, D), unit length.
        rows: labels of the embeddings.
        false_accept_rates: intervals are available up to the largest of these.
        num_workers: Ray workers; 1: this process.
        pairs_per_block: block size for one process; progress is reported after each block.
        progress: called with (blocks done, number of blocks).

    Raises:
        ValueError: there is no genuine pair, or no impostor pair.
    """
    items = Items(embeddings, torch.from_numpy(rows.labels).to(embeddings.device))
    num_rows = len(rows.labels)
    blocks = blocks_of_equal_area(
        num_rows, _num_blocks(num_rows * num_rows // 2, num_workers, pairs_per_block)
    )
    levels = levels_for(items, false_accept_rates)
    counts = reduce(add, _map_blocks(partial(_block_counts, levels), [items], blocks, num_workers, progress))
    return roc_of_counts(counts, levels, items)


def _block_metrics(config: EvaluationConfig, sets: Sequence[Items], block: slice) -> QueryMetrics:
    queries, gallery = sets
    return query_metrics(
        queries.select(block),
        gallery,
        recall_at=config.recall_at,
        precision_at=config.precision_at,
        map_at=config.map_at,
        map_denominators=config.map_denominators,
        full_map=config.full_map,
    )


def _block_counts(levels: Levels, sets: Sequence[Items], block: slice) -> PairCounts:
    (items,) = sets
    return count_pairs(items, levels, block)


def _num_blocks(num_pairs: int, num_workers: int, pairs_per_block: int) -> int:
    if num_workers > 1:
        return num_workers * _BLOCKS_PER_WORKER
    return max(math.ceil(num_pairs / pairs_per_block), 1)


def _even(num_rows: int, num_blocks: int) -> list[slice]:
    return _between([num_rows * number // num_blocks for number in range(num_blocks + 1)])


def blocks_of_equal_area(num_rows: int, num_blocks: int) -> list[slice]:
    """Blocks of rows with equal numbers of pairs, if each row is compared with all later rows."""
    shares = (1 - math.sqrt(1 - number / num_blocks) for number in range(num_blocks + 1))
    return _between([round(num_rows * share) for share in shares])


def _between(bounds: Sequence[int]) -> list[slice]:
    """The non-empty slices between bounds; at least one slice."""
    return [slice(start, stop) for start, stop in pairwise(bounds) if start < stop] or [slice(0, 0)]


def _map_blocks(
    function: Callable[[Sequence[Items], slice], R],
    sets: Sequence[Items],
    blocks: Sequence[slice],
    num_workers: int,
    progress: OnProgress | None,
) -> Iterator[R]:
    """Results of `function(sets, block)` for each block, in order."""
    if num_workers == 1:
        yield from _counted(map(partial(function, sets), blocks), len(blocks), progress)
        return
    arrays = {id(items): _Arrays.from_items(items) for items in sets}  # a set with both roles is sent once
    shared = [arrays[id(items)] for items in sets]
    with ray_session(num_cpus=num_workers):
        yield from _counted(map_remote(partial(_on_worker, function), shared, blocks), len(blocks), progress)


def _counted(results: Iterable[R], total: int, progress: OnProgress | None) -> Iterator[R]:
    for done, result in enumerate(results, start=1):
        if progress is not None:
            progress(done, total)
        yield result


@dataclass(frozen=True)
class _Arrays:
    """Items as NumPy arrays, which Ray workers read from shared memory."""

    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64] | None
    groups: NDArray[np.int64] | None

    @classmethod
    def from_items(cls, items: Items) -> Self:
        ids, groups = (None if c is None else c.cpu().numpy() for c in (items.ids, items.groups))
        return cls(items.embeddings.cpu().numpy(), items.labels.cpu().numpy(), ids, groups)

    def items(self) -> Items:
        device = device_for(self.embeddings.nbytes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # read only
            ids, groups = (
                None if c is None else torch.from_numpy(c).to(device) for c in (self.ids, self.groups)
            )
            vectors, labels = (torch.from_numpy(c).to(device) for c in (self.embeddings, self.labels))
        return Items(vectors, labels, ids, groups)


def _on_worker(function: Callable[[Sequence[Items], slice], R], shared: Sequence[_Arrays], block: slice) -> R:
    """One block on a Ray worker."""
    items = {id(arrays): arrays.items() for arrays in shared}
    return function([items[id(arrays)] for arrays in shared], block).cpu()


def device_for(size_bytes: int) -> torch.device:
    """The GPU, if the vectors and a block of similarities fit its memory; else the CPU."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if 2 * size_bytes + (4 << 30) < free:
            return torch.device("cuda")
    return torch.device("cpu")

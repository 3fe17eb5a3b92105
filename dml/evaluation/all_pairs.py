"""The passes over all pairs of a split, in blocks of rows: one after another, or in parallel on Ray.

Every block of queries searches the whole gallery, so the numbers are those of one pass, wherever it is done.
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
"""So many are not worth a cluster: 100,000 rows among themselves."""
PAIRS_PER_BLOCK = 1 << 33
_BLOCKS_PER_WORKER = 4  # workers are not equally quick


class _Movable(Protocol):
    def cpu(self) -> Self: ...


R = TypeVar("R", bound=_Movable)


def workers_for(num_rows: int, *, pairs_here: int = PAIRS_HERE) -> int:
    """How many Ray workers evaluate so many rows: where there is a cluster one per GPU or, without, per core.

    On a single machine torch uses all cores anyway: there it is one per GPU.

    Args:
        num_rows: of the split.
        pairs_here: up to so many pairs one process is enough.
    """
    if num_rows * num_rows <= pairs_here:
        return 1
    if not on_cluster():
        return max(torch.cuda.device_count(), 1)
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
    """Every retrieval metric of every query; its `rows` count the queries alone where they are a set apart.

    Args:
        embeddings: (N, D), unit length.
        rows: theirs.
        config: query and gallery sets, and metrics.
        num_workers: Ray workers; 1: here.
        pairs_per_block: of one process; after each block the progress is told.
        progress: called with (blocks done, blocks in all).

    Raises:
        InvalidData: `config.role_attribute` makes no row a query, or none a gallery item.
    """
    queries, gallery = query_gallery(embeddings, rows, config)
    num_queries = len(queries.labels)
    num_pairs = num_queries * len(gallery.labels)
    blocks = _even(num_queries, _num_blocks(num_pairs, num_workers, pairs_per_block))
    parts = _each_block(partial(_metrics_of, config), [queries, gallery], blocks, num_workers, progress)
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
    """Verification on all pairs of rows, as `roc_of_all_pairs`.

    Args:
        embeddings: (N, D), unit length.
        rows: theirs; only their labels matter.
        false_accept_rates: up to the largest of them there are intervals.
        num_workers: Ray workers; 1: here.
        pairs_per_block: of one process; after each block the progress is told.
        progress: called with (blocks done, blocks in all).

    Raises:
        ValueError: no pair of one class, or none of two.
    """
    items = Items(embeddings, torch.from_numpy(rows.labels).to(embeddings.device))
    num_rows = len(rows.labels)
    blocks = blocks_of_equal_area(
        num_rows, _num_blocks(num_rows * num_rows // 2, num_workers, pairs_per_block)
    )
    levels = levels_for(items, false_accept_rates)
    counts = reduce(add, _each_block(partial(_counts_of, levels), [items], blocks, num_workers, progress))
    return roc_of_counts(counts, levels, items)


def _metrics_of(config: EvaluationConfig, sets: Sequence[Items], block: slice) -> QueryMetrics:
    queries, gallery = sets
    return query_metrics(
        queries.of(block),
        gallery,
        recall_at=config.recall_at,
        precision_at=config.precision_at,
        map_at=config.map_at,
        map_denominators=config.map_denominators,
        full_map=config.full_map,
    )


def _counts_of(levels: Levels, sets: Sequence[Items], block: slice) -> PairCounts:
    (items,) = sets
    return count_pairs(items, levels, block)


def _num_blocks(num_pairs: int, num_workers: int, pairs_per_block: int) -> int:
    if num_workers > 1:
        return num_workers * _BLOCKS_PER_WORKER
    return max(math.ceil(num_pairs / pairs_per_block), 1)


def _even(num_rows: int, num_blocks: int) -> list[slice]:
    return _between([num_rows * number // num_blocks for number in range(num_blocks + 1)])


def blocks_of_equal_area(num_rows: int, num_blocks: int) -> list[slice]:
    """Of rows each of which is compared with those after it: equally many pairs, so the first are shorter."""
    shares = (1 - math.sqrt(1 - number / num_blocks) for number in range(num_blocks + 1))
    return _between([round(num_rows * share) for share in shares])


def _between(bounds: Sequence[int]) -> list[slice]:
    """Without the empty ones; one at least."""
    return [slice(start, stop) for start, stop in pairwise(bounds) if start < stop] or [slice(0, 0)]


def _each_block(
    function: Callable[[Sequence[Items], slice], R],
    sets: Sequence[Items],
    blocks: Sequence[slice],
    num_workers: int,
    progress: OnProgress | None,
) -> Iterator[R]:
    """`function(sets, block)` of each block, in order."""
    if num_workers == 1:
        yield from _counted(map(partial(function, sets), blocks), len(blocks), progress)
        return
    arrays = {id(items): _Arrays.of(items) for items in sets}  # a set that is both is sent once
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
    """Items as Ray's workers read them from shared memory."""

    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64] | None
    groups: NDArray[np.int64] | None

    @classmethod
    def of(cls, items: Items) -> Self:
        ids, groups = (None if c is None else c.cpu().numpy() for c in (items.ids, items.groups))
        return cls(items.embeddings.cpu().numpy(), items.labels.cpu().numpy(), ids, groups)

    def items(self) -> Items:
        device = device_for(self.embeddings.nbytes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
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
    """A GPU that holds the vectors and a block of similarities, else the CPU."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if 2 * size_bytes + (4 << 30) < free:
            return torch.device("cuda")
    return torch.device("cpu")

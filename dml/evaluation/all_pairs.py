"""The passes over all pairs of a split, in stretches: one after another, or side by side on Ray's workers.

Each stretch of the queries asks the whole gallery, so the numbers are those of one pass, whoever counts.
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

from dml.cluster import capacity, is_remote, map_apart, ray_session
from dml.config import EvaluationConfig
from dml.evaluation.query_gallery import Rows, sides
from dml.metrics.ranking import Items
from dml.metrics.retrieval import QueryMetrics, joined, query_metrics
from dml.metrics.verification import PairCounts, RocCurve, count_pairs, levels_for, roc_of_counts

OnProgress = Callable[[int, int], None]
_PAIRS_HERE = 10**10
"""So many are not worth a cluster: 100,000 rows among themselves."""
_PAIRS_PER_STRETCH = 1 << 33
_STRETCHES_PER_WORKER = 4  # workers are not equally quick


class _Movable(Protocol):
    def cpu(self) -> Self: ...


R = TypeVar("R", bound=_Movable)


def workers_for(num_rows: int) -> int:
    """How many Ray workers judge so many rows: one per GPU or, without, per core, where there is a cluster.

    On a single machine torch uses all cores anyway: there it is one per GPU.
    """
    if num_rows * num_rows <= _PAIRS_HERE:
        return 1
    if not is_remote():
        return max(torch.cuda.device_count(), 1)
    with ray_session():
        return max(capacity("GPU").most or capacity("CPU").most, 1)


def query_values(
    embeddings: Tensor,
    rows: Rows,
    config: EvaluationConfig,
    *,
    num_workers: int = 1,
    progress: OnProgress | None = None,
) -> QueryMetrics:
    """Every retrieval metric of every query; its `rows` count the queries alone where there are roles.

    Args:
        embeddings: (N, D), unit length.
        rows: theirs.
        config: who searches whom, and which metrics.
        num_workers: Ray workers; 1: here.
        progress: called with (stretches done, stretches in all).

    Raises:
        InvalidData: no query or no gallery item where roles are asked for.
    """
    items = sides(embeddings, rows, config)
    asked, size = len(items[0].labels), len(items[-1].labels)
    stretches = _even(asked, _num_stretches(asked * size, num_workers))
    found = _each(partial(_ask, config), items, stretches, num_workers, progress)
    return joined(list(found), [stretch.stop - stretch.start for stretch in stretches])


def roc_of_rows(
    embeddings: Tensor,
    rows: Rows,
    *,
    false_accept_rates: Sequence[float] = (0.1,),
    num_workers: int = 1,
    progress: OnProgress | None = None,
) -> RocCurve:
    """Verification on all pairs of rows, as `roc_of_all_pairs`.

    Args:
        embeddings: (N, D), unit length.
        rows: theirs; only their labels matter.
        false_accept_rates: up to the largest of them there are intervals.
        num_workers: Ray workers; 1: here.
        progress: called with (stretches done, stretches in all).

    Raises:
        ValueError: no pair of one class, or none of two.
    """
    items = Items(embeddings, torch.from_numpy(rows.labels).to(embeddings.device))
    size = len(rows.labels)
    stretches = _of_equal_area(size, _num_stretches(size * size // 2, num_workers))
    levels = levels_for(items.embeddings, items.labels, false_accept_rates)
    counts = reduce(add, _each(partial(_count, levels), [items], stretches, num_workers, progress))
    return roc_of_counts(counts, levels, torch.from_numpy(rows.labels), largest_rate=max(false_accept_rates))


def _ask(config: EvaluationConfig, sides: Sequence[Items], stretch: slice) -> QueryMetrics:
    return query_metrics(
        sides[0].of(stretch),
        sides[-1],
        recall_at=config.recall_at,
        precision_at=config.precision_at,
        map_at=config.map_at,
        map_denominators=config.map_denominators,
        full_map=config.full_map,
    )


def _count(levels: Tensor, sides: Sequence[Items], stretch: slice) -> PairCounts:
    (items,) = sides
    return count_pairs(items.embeddings, items.labels, stretch, levels)


def _num_stretches(num_pairs: int, num_workers: int) -> int:
    if num_workers > 1:
        return num_workers * _STRETCHES_PER_WORKER
    return max(math.ceil(num_pairs / _PAIRS_PER_STRETCH), 1)


def _even(size: int, count: int) -> list[slice]:
    return _between([size * number // count for number in range(count + 1)])


def _of_equal_area(size: int, count: int) -> list[slice]:
    """Of rows that each meet what comes after them: the first stretches are shorter."""
    return _between([round(size * (1 - math.sqrt(1 - number / count))) for number in range(count + 1)])


def _between(bounds: Sequence[int]) -> list[slice]:
    """Without the empty ones; one at least."""
    found = [slice(start, stop) for start, stop in pairwise(bounds) if start < stop]
    return found or [slice(0, 0)]


def _each(
    function: Callable[[Sequence[Items], slice], R],
    sides: Sequence[Items],
    stretches: Sequence[slice],
    num_workers: int,
    progress: OnProgress | None,
) -> Iterator[R]:
    """`function(sides, stretch)` of each, in order."""
    if num_workers == 1:
        yield from _told(map(partial(function, sides), stretches), len(stretches), progress)
        return
    arrays = [_Arrays.of(items) for items in sides]
    with ray_session(num_cpus=num_workers):
        yield from _told(map_apart(partial(_apart, function), arrays, stretches), len(stretches), progress)


def _told(found: Iterable[R], count: int, progress: OnProgress | None) -> Iterator[R]:
    for done, one in enumerate(found, start=1):
        if progress is not None:
            progress(done, count)
        yield one


@dataclass(frozen=True)
class _Arrays:
    """Items as Ray's workers look at them where they lie."""

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
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes
            ids, groups = (
                None if c is None else torch.from_numpy(c).to(device) for c in (self.ids, self.groups)
            )
            vectors, labels = (torch.from_numpy(c).to(device) for c in (self.embeddings, self.labels))
        return Items(vectors, labels, ids, groups)


def _apart(function: Callable[[Sequence[Items], slice], R], arrays: Sequence[_Arrays], stretch: slice) -> R:
    """A stretch on a Ray worker."""
    return function([each.items() for each in arrays], stretch).cpu()


def device_for(size_bytes: int) -> torch.device:
    """A GPU that holds the vectors and a block of similarities, else the CPU."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if 2 * size_bytes + (4 << 30) < free:
            return torch.device("cuda")
    return torch.device("cpu")

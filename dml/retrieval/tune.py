"""A filled index and held-out queries in; search parameters that reach a recall target, and what others cost.

Lists are scanned by `nprobe`, graphs searched by `efSearch`. An index of codes finds `k_factor_rf` times as
many candidates, which are compared in full. These are Faiss' own names, as its `ParameterSpace` takes them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.reports import OperatingCurve, OperatingPoint

K = 10
_K_FACTORS = (1, 2, 4, 8, 16, 32, 64)
_K_FACTORS_COMPARED = 3  # beyond the first that reaches the target, fewer lists no longer make up for them
_VISITED = (10, 4096)
_WELL_BEYOND = 0.99  # the curve goes on to this recall
_TIMED_QUERIES = 32


@dataclass(frozen=True)
class HeldOut:
    """Queries that are rows of the index, with their exact neighbours; none is its own answer."""

    rows: NDArray[np.int64]
    """(Q,)"""
    queries: NDArray[np.float32]
    """(Q, D)"""
    truth: NDArray[np.int64]
    """(Q, k) rows, the most similar first."""
    labels: NDArray[np.int64] | None = None
    """(N,) of the index's rows; None: there are none."""

    @classmethod
    def of(
        cls,
        rows: NDArray[np.int64],
        queries: NDArray[np.float32],
        nearest: NDArray[np.int64],
        labels: NDArray[np.int64] | None = None,
    ) -> "HeldOut":
        """
        Args:
            rows: (Q,) of the queries.
            queries: (Q, D).
            nearest: (Q, k + 1) rows by exact search, the query among them or not.
            labels: (N,) of the index's rows.
        """
        return cls(rows, queries, without_itself(nearest, rows), labels)

    def recall(self, nearest: NDArray[np.int64]) -> float:
        """Share of the exact neighbours in (Q, k + 1) answers."""
        k = self.truth.shape[1]
        found = without_itself(nearest, self.rows)
        return float(np.mean([np.isin(a, b).sum() / k for a, b in zip(self.truth, found, strict=True)]))

    def mate_at_1(self, nearest: NDArray[np.int64]) -> float | None:
        """Share of the queries with a mate whose first answer has their label."""
        if self.labels is None:
            return None
        own = self.labels[self.rows]
        has_mate = np.bincount(self.labels)[own] > 1
        first = without_itself(nearest, self.rows)[:, 0]
        hits = (first >= 0) & (self.labels[first] == own)
        return float(hits[has_mate].mean()) if has_mate.any() else None


def without_itself(nearest: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(Q, k): the k best of k + 1 neighbours that are not the query."""
    others = np.argsort(nearest == rows[:, None], axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(nearest, others, axis=1)


def keeps_vectors(index: faiss.Index) -> bool:
    """Whether an index computes similarities of the vectors themselves, or of their halves: nothing is to be
    compared again."""
    if isinstance(index, faiss.IndexRefine):
        return True
    if isinstance(index, faiss.IndexHNSW):
        index = faiss.downcast_index(index.storage)
    if isinstance(index, faiss.IndexScalarQuantizer | faiss.IndexIVFScalarQuantizer):
        return bool(index.sq.qtype == faiss.ScalarQuantizer.QT_fp16)
    return isinstance(index, faiss.IndexFlat | faiss.IndexIVFFlat | faiss.IndexNSGFlat)


def refined(index: faiss.Index, vectors: faiss.Index, k_factor: int) -> faiss.Index:
    """An index whose candidates are compared in full.

    Args:
        index: finds candidates; keep it, and `vectors`, as long as what is returned.
        vectors: a flat index of the same rows.
        k_factor: candidates per answer; 0: the index as it is.
    """
    if not k_factor:
        return index
    both = faiss.IndexRefine(index, vectors)
    both.k_factor = float(k_factor)
    return both


def tune(
    index: faiss.Index,
    vectors: faiss.Index,
    held_out: HeldOut,
    *,
    target: float,
    probes: int | None = None,
) -> OperatingCurve:
    """Set an index's search parameters: the fastest that reach the target, or those that come nearest to it.

    Args:
        index: is searched; `nprobe` or `efSearch` is set.
        vectors: a flat index of its rows, to compare the candidates of codes in full.
        held_out: queries and their exact neighbours.
        target: recall@k.
        probes: of the lists, set by hand; None: by the target.

    Returns:
        Parameters with recall, mate@1 and latency; whoever searches passes `k_factor` to `refined`.
    """
    tuning = _Tuning(index, vectors, held_out, target)
    low, high = tuning.range if probes is None else (probes, probes)
    best: tuple[OperatingPoint, int] | None = None
    tried = 0
    for k_factor in (0,) if keeps_vectors(index) else _K_FACTORS:
        value = tuning.least(k_factor, low, high)
        point = tuning.point(k_factor, value)
        reaches = point.recall >= target
        if best is None or _is_better(point, best[0], target):
            best = point, k_factor
        tried += reaches
        if tried >= _K_FACTORS_COMPARED:
            break
    assert best is not None
    chosen, k_factor = best
    steps = {point.parameters: point for point in (*tuning.steps(k_factor, low, high), chosen)}
    tuning.set(chosen)
    return OperatingCurve(
        target=target,
        num_queries=len(held_out.rows),
        memory_bytes=_file_bytes(index),
        exact_mate_at_1=held_out.mate_at_1(np.hstack([held_out.truth, held_out.rows[:, None]])),
        chosen=chosen,
        points=tuple(sorted(steps.values(), key=lambda point: (point.recall, point.latency_ms))),
    )


def _is_better(point: OperatingPoint, other: OperatingPoint, target: float) -> bool:
    if point.recall >= target and other.recall >= target:
        return point.latency_ms < other.latency_ms
    return point.recall > other.recall


class _Tuning:
    """One index and its queries, searched with one parameter after the other."""

    def __init__(self, index: faiss.Index, vectors: faiss.Index, held_out: HeldOut, target: float) -> None:
        self._index, self._vectors, self._held_out, self._target = index, vectors, held_out, target
        self._recalls: dict[tuple[int, int], tuple[float, float | None]] = {}
        lists = faiss.try_extract_index_ivf(index)
        if lists is not None:
            self._name, self.range = "nprobe", (1, int(lists.nlist))
        elif isinstance(index, faiss.IndexHNSW):
            self._name, self.range = "efSearch", _VISITED
        else:
            self._name, self.range = "", (1, 1)

    def least(self, k_factor: int, low: int, high: int) -> int:
        """The least value in [low, high] that reaches the target; high, where none does."""
        value = low
        while value < high and self._measured(k_factor, value)[0] < self._target:
            low, value = value, min(2 * value, high)
        while value - low > max(low // 16, 1):  # finer steps than the recall of the queries tells apart
            middle = (low + value) // 2
            if self._measured(k_factor, middle)[0] < self._target:
                low = middle
            else:
                value = middle
        return low if self._measured(k_factor, low)[0] >= self._target else value

    def steps(self, k_factor: int, low: int, high: int) -> Iterator[OperatingPoint]:
        """Doubled values, up to a recall well beyond the target."""
        value = low
        while True:
            point = self.point(k_factor, value)
            yield point
            if value >= high or point.recall >= max(self._target, _WELL_BEYOND):
                return
            value = min(2 * value, high)

    def point(self, k_factor: int, value: int) -> OperatingPoint:
        recall, mate_at_1 = self._measured(k_factor, value)
        self._set(value)
        searched = refined(self._index, self._vectors, k_factor)
        settings = [f"{self._name}={value}"] * bool(self._name) + [f"k_factor_rf={k_factor}"] * bool(k_factor)
        return OperatingPoint(
            parameters=",".join(settings),
            recall=recall,
            mate_at_1=mate_at_1,
            latency_ms=_latency_ms(searched, self._held_out),
        )

    def set(self, point: OperatingPoint) -> None:
        for setting in point.parameters.split(","):
            name, _, value = setting.partition("=")
            if name == self._name and name:
                self._set(int(value))

    def _measured(self, k_factor: int, value: int) -> tuple[float, float | None]:
        if (k_factor, value) not in self._recalls:
            self._set(value)
            held_out = self._held_out
            searched = refined(self._index, self._vectors, k_factor)
            _, nearest = searched.search(held_out.queries, held_out.truth.shape[1] + 1)
            self._recalls[k_factor, value] = held_out.recall(nearest), held_out.mate_at_1(nearest)
        return self._recalls[k_factor, value]

    def _set(self, value: int) -> None:
        if self._name:
            faiss.ParameterSpace().set_index_parameter(self._index, self._name, value)


def _latency_ms(index: faiss.Index, held_out: HeldOut) -> float:
    """Median processor time of single queries on one thread."""
    k, threads = held_out.truth.shape[1], faiss.omp_get_max_threads()
    taken = []
    faiss.omp_set_num_threads(1)
    try:
        for row in range(min(len(held_out.queries), _TIMED_QUERIES)):
            start = time.thread_time()
            index.search(held_out.queries[row : row + 1], k)
            taken.append(time.thread_time() - start)
    finally:
        faiss.omp_set_num_threads(threads)
    return float(np.median(taken)) * 1e3


def _file_bytes(index: faiss.Index) -> int:
    """Of the index's file, counted as it would be written."""
    size = 0

    def count(content: bytes) -> None:
        nonlocal size
        size += len(content)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count))  # type: ignore[attr-defined]
    return size

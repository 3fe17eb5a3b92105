"""A filled index and held-out queries in; search parameters that reach a recall target, and what others cost.

Lists are scanned by `nprobe`, graphs searched by `efSearch`, or NSG by `search_L`. An index of codes finds
`k_factor_rf` times as many candidates, which are compared in full. These are Faiss' own names.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.reports import OperatingCurve, OperatingPoint
from dml.retrieval.cost_model import K_FACTORS
from dml.retrieval.held_out import HeldOut

_K_FACTORS_COMPARED = 3  # beyond the first that reaches the target, fewer lists no longer make up for them
_VISITED = (10, 4096)
_WELL_BEYOND = 0.99  # the curve goes on to this recall
_TIMED_QUERIES = 32
_SCANNED_AT_ONCE = 1 << 19
"""Queries times lists: Faiss holds up to 40 bytes of each, 330 MB of 2,000 queries and 4,096 lists."""


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


def graph_of(index: faiss.Index) -> faiss.IndexHNSW | faiss.IndexNSG | None:
    """The graph that an index searches, also below a transform; None: it searches none."""
    if isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index if isinstance(index, faiss.IndexHNSW | faiss.IndexNSG) else None


def refined(index: faiss.Index, vectors: faiss.Index, k_factor: float) -> faiss.Index:
    """An index whose candidates are compared in full.

    Args:
        index: finds candidates; keep it, and `vectors`, as long as what is returned.
        vectors: a flat index of the same rows.
        k_factor: candidates per answer; 0: the index as it is.
    """
    if not k_factor:
        return index
    both = faiss.IndexRefine(index, vectors)
    both.k_factor = k_factor
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

    They reach it where the mean recall of the queries is above it by its standard error: so five of six times
    the recall of all queries is, too.

    Args:
        index: is searched; `nprobe`, `efSearch` or `search_L` is set.
        vectors: a flat index of its rows, to compare the candidates of codes in full.
        held_out: queries and their exact neighbours.
        target: recall@k.
        probes: of the lists, set by hand; None: by the target.

    Returns:
        Parameters with recall, mate@1 and latency; whoever searches passes `k_factor` to `refined`.
    """
    tuning = _Tuning(index, vectors, held_out, target)
    low, high = tuning.range if probes is None else (probes, probes)
    best: tuple[OperatingPoint, int, bool] | None = None
    tried = 0
    for k_factor in (0,) if keeps_vectors(index) else K_FACTORS:
        if k_factor > 1 and k_factor * held_out.wanted > index.ntotal:
            break  # more candidates than rows, which NSG looks for for ever
        value = tuning.least(k_factor, low, high)
        point = tuning.point(k_factor, value)
        reaches = tuning.reaches(k_factor, value)
        if best is None or _is_better(point, reaches, *best[::2]):
            best = point, k_factor, reaches
        tried += reaches
        if tried >= _K_FACTORS_COMPARED:
            break
    assert best is not None
    chosen, k_factor, _ = best
    steps = {point.parameters: point for point in (*tuning.steps(k_factor, low, high), chosen)}
    tuning.set(chosen)
    return OperatingCurve(
        target=target,
        num_queries=len(held_out.rows),
        memory_bytes=_file_bytes(index),
        exact_mate_at_1=held_out.mate_at_1(np.hstack([held_out.truth, held_out.rows[:, None]])),
        least_similarity=held_out.least_similarity(),
        chosen=chosen,
        points=tuple(sorted(steps.values(), key=lambda point: (point.recall, point.latency_ms))),
    )


def _is_better(point: OperatingPoint, reaches: bool, other: OperatingPoint, other_reaches: bool) -> bool:
    if reaches and other_reaches:
        return point.latency_ms < other.latency_ms
    return reaches or (not other_reaches and point.recall > other.recall)


@dataclass(frozen=True)
class _Measured:
    recall: float
    standard_error: float
    mate_at_1: float | None


def _numbered(index: faiss.Index, rows: NDArray[np.int64], num_rows: int) -> faiss.Index:
    """An index that answers with rows, not with its positions; to be refined by all `num_rows` vectors."""
    numbered = faiss.IndexIDMap(faiss.IndexFlatIP(index.d))  # it takes none that is filled already
    numbered.index, numbered.ntotal = index, num_rows
    faiss.copy_array_to_vector(rows, numbered.id_map)
    return numbered


class _Tuning:
    """One index and its queries, searched with one parameter after the other."""

    def __init__(self, index: faiss.Index, vectors: faiss.Index, held_out: HeldOut, target: float) -> None:
        self._index, self._vectors, self._held_out, self._target = index, vectors, held_out, target
        self._numbered = (
            index if held_out.indexed is None else _numbered(index, held_out.indexed, vectors.ntotal)
        )
        self._measurements: dict[tuple[int, int], _Measured] = {}
        lists = faiss.try_extract_index_ivf(index)
        if lists is not None:
            self._name, self.range = "nprobe", (1, int(lists.nlist))
        elif (graph := graph_of(index)) is not None:
            self._name, self.range = "efSearch", _VISITED
            if isinstance(graph, faiss.IndexNSG):  # it begins with so many rows, or looks for them for ever
                self._name, self.range = "search_L", (_VISITED[0], min(_VISITED[1], int(graph.ntotal)))
        else:
            self._name, self.range = "", (1, 1)

    def least(self, k_factor: int, low: int, high: int) -> int:
        """The least value in [low, high] that reaches the target; high, where none does."""
        value = low
        while value < high and not self.reaches(k_factor, value):
            low, value = value, min(2 * value, high)
        while value - low > max(low // 64, 1):  # the same queries: their recall rises with the value
            middle = (low + value) // 2
            if self.reaches(k_factor, middle):
                value = middle
            else:
                low = middle
        return low if self.reaches(k_factor, low) else value

    def reaches(self, k_factor: int, value: int) -> bool:
        measured = self._measured(k_factor, value)
        return measured.recall - measured.standard_error >= self._target

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
        measured = self._measured(k_factor, value)
        self._set(value)
        searched = refined(self._numbered, self._vectors, k_factor)
        settings = [f"{self._name}={value}"] * bool(self._name) + [f"k_factor_rf={k_factor}"] * bool(k_factor)
        return OperatingPoint(
            parameters=",".join(settings),
            recall=measured.recall,
            mate_at_1=measured.mate_at_1,
            latency_ms=_latency_ms(searched, self._held_out),
        )

    def set(self, point: OperatingPoint) -> None:
        for setting in point.parameters.split(","):
            name, _, value = setting.partition("=")
            if name == self._name and name:
                self._set(int(value))

    def _measured(self, k_factor: int, value: int) -> "_Measured":
        if (k_factor, value) not in self._measurements:
            self._set(value)
            held_out, k = self._held_out, self._held_out.truth.shape[1]
            # As many candidates as for k answers, and the query itself where it is found.
            candidates = (k * k_factor + held_out.wanted - k + 0.5) / held_out.wanted if k_factor else 0
            searched = refined(self._numbered, self._vectors, candidates)
            at_once = max(_SCANNED_AT_ONCE // value, 1)
            nearest = np.concatenate(
                [
                    searched.search(held_out.queries[start : start + at_once], held_out.wanted)[1]
                    for start in range(0, len(held_out.queries), at_once)
                ]
            )
            recalls = held_out.recalls(nearest)
            self._measurements[k_factor, value] = _Measured(
                float(recalls.mean()),
                float(recalls.std() / np.sqrt(len(recalls))),
                held_out.mate_at_1(nearest),
            )
        return self._measurements[k_factor, value]

    def _set(self, value: int) -> None:
        graph = graph_of(self._index)
        if isinstance(graph, faiss.IndexNSG):  # Faiss' ParameterSpace does not know it
            graph.nsg.search_L = value
        elif self._name:
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

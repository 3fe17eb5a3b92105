"""A minute's timing of this machine: what a search scans, a build computes and the disk reads, per unit.

`read_rates` measures once per processor, number of threads and version of Faiss, and keeps the result in the
cache. Times of queries are of one thread; times of builds of all threads that Faiss uses.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dml.progress import Ticker
from dml.retrieval.rates import PROBE_DIM, PROBE_GRAPH_ROWS, PROBE_LINKS, Rates
from dml.storage import cache_dir

_SCANNED_ROWS = 200_000  # 100 MB, beyond most caches
_LISTS, _CENTROIDS = 256, 1024
_FEW_ROWS_SHARE = 8
_LIST_CODES = {
    "Flat": "Flat",
    "SQfp16": "SQfp16",
    "SQ8": "SQ8",
    "RaBitQ": "RaBitQ",
    "PQ": "PQ32x4fs",
}
_QUERIES = 24
_VISITED = 64
_FILE_BYTES, _PAGE_BYTES, _READS = 64 << 20, 4096, 300


def processor_name() -> str:
    """As the system calls it."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_rates(*, again: bool = False) -> Rates:
    """What this machine does per unit of time: from the cache, or measured now, in a minute.

    Args:
        again: measure also where a result is kept.
    """
    processor, threads = processor_name(), faiss.omp_get_max_threads()
    words = f"{processor} {threads} {faiss.__version__}"
    name = "".join(letter if letter.isalnum() else "-" for letter in words)
    kept = cache_dir() / "probe" / f"{name}.json"
    if not again:
        with suppress(OSError, ValidationError, UnicodeDecodeError):
            return Rates.model_validate_json(kept.read_text(encoding="utf-8"))
    with Ticker("probe") as ticker:
        ticker.begin(f"timing {processor}, {threads} threads")
        rates = measure(processor, threads)
    with suppress(OSError):  # a cache that cannot be written costs a minute each time
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(rates.model_dump(), indent=1), encoding="utf-8")
        aside.replace(kept)
    return rates


def measure(processor: str, threads: int, *, rows: int = _SCANNED_ROWS) -> Rates:
    """Time the parts of searching and building on drawn vectors.

    Args:
        processor: its name.
        threads: those of builds.
        rows: vectors that are scanned; fewer than the caches hold flatter.
    """
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, PROBE_DIM), dtype=np.float32)
    faiss.normalize_L2(vectors)
    queries = np.ascontiguousarray(vectors[:_QUERIES])
    flat = faiss.IndexFlatIP(PROBE_DIM)
    flat.add(vectors)
    centroids = faiss.IndexFlatIP(PROBE_DIM)
    centroids.add(vectors[:_CENTROIDS])
    centroid_s = _of_one_thread(lambda: _search_each(centroids, queries, 16)) / _CENTROIDS
    assign_s = _of_all_threads(lambda: centroids.search(vectors[: 1 << 14], 1), threads) / (1 << 14)
    scanned = {code: _list_s(factory, vectors, queries, centroid_s) for code, factory in _LIST_CODES.items()}
    graph = faiss.index_factory(PROBE_DIM, f"HNSW{PROBE_LINKS}", faiss.METRIC_INNER_PRODUCT)
    in_graph = vectors[: min(PROBE_GRAPH_ROWS, rows)]
    insert_s = _of_all_threads(lambda: graph.add(in_graph), threads, times=1) / len(in_graph)
    faiss.ParameterSpace().set_index_parameters(graph, f"efSearch={_VISITED}")  # type: ignore[arg-type]
    visit_s = _of_one_thread(lambda: _search_each(graph, queries, 10)) / _VISITED
    random_read_s, bytes_per_s = _disk()
    return Rates(
        processor=processor,
        threads=threads,
        measured=True,
        scan_row_ns=_of_one_thread(lambda: _search_each(flat, queries, 10)) / rows * 1e9,
        list_us={code: list_s * 1e6 for code, (list_s, _) in scanned.items()},
        list_row_ns={code: row_s * 1e9 for code, (_, row_s) in scanned.items()},
        centroid_ns=centroid_s * 1e9,
        multiply_ps=assign_s / (_CENTROIDS * PROBE_DIM) * 1e12,
        compare_ns=_compare_s(flat, queries, rows) * 1e9,
        insert_us=insert_s * 1e6,
        visit_us=visit_s * 1e6,
        random_read_us=random_read_s * 1e6,
        read_bytes_per_s=bytes_per_s,
    )


def _list_s(
    factory: str, vectors: NDArray[np.float32], queries: NDArray[np.float32], centroid_s: float
) -> tuple[float, float]:
    """Seconds of each list that is scanned, and of each row in it: from lists of few rows, and of more."""
    index = faiss.index_factory(PROBE_DIM, f"IVF{_LISTS},{factory}", faiss.METRIC_INNER_PRODUCT)
    lists = faiss.extract_index_ivf(index)
    lists.cp.niter = 2
    index.train(vectors[: _LISTS * 64])
    lists.nprobe = _LISTS
    few = len(vectors) // _FEW_ROWS_SHARE
    taken = []
    for block in (vectors[:few], vectors[few:]):
        index.add(block)
        taken.append(_of_one_thread(lambda: _search_each(index, queries, 10)) - _LISTS * centroid_s)
    row_s = max(taken[1] - taken[0], 0.1 * taken[1]) / (len(vectors) - few)
    return max(taken[0] - few * row_s, 0.05 * taken[0]) / _LISTS, row_s


def _compare_s(flat: faiss.Index, queries: NDArray[np.float32], rows: int) -> float:
    """Seconds to compare a query with a row somewhere in memory."""
    number = 512
    chosen = np.random.default_rng(1).integers(0, rows, (len(queries), number))

    def compare() -> None:
        for row in range(len(queries)):
            among = faiss.SearchParameters(sel=faiss.IDSelectorArray(chosen[row]))  # type: ignore[call-arg]
            flat.search(queries[row : row + 1], 10, params=among)

    return _of_one_thread(compare) / number


def _search_each(index: faiss.Index, queries: NDArray[np.float32], k: int) -> None:
    for row in range(len(queries)):
        index.search(queries[row : row + 1], k)


def _of_one_thread(work: Callable[[], None]) -> float:
    """Processor seconds of a query on one thread: what else runs on the machine does not count."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        work()
        return _best(work, 3, time.thread_time) / _QUERIES
    finally:
        faiss.omp_set_num_threads(threads)


def _of_all_threads(work: Callable[[], object], threads: int, *, times: int = 3) -> float:
    """Seconds on a machine that does nothing else: processor seconds over threads."""
    return _best(work, times, time.process_time) / threads


def _best(work: Callable[[], object], times: int, clock: Callable[[], float]) -> float:
    measured = []
    for _ in range(times):
        start = clock()
        work()
        measured.append(clock() - start)
    return min(measured)


def _disk() -> tuple[float, float]:
    """Seconds of a read of one page somewhere in a file that no cache holds, and bytes a second in order."""
    folder = cache_dir()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder if folder.is_dir() else None) as file:
        block = os.urandom(1 << 20)
        for _ in range(_FILE_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        _forget(file.fileno())
        with Path(file.name).open("rb", buffering=0) as again:
            start = time.perf_counter()
            while again.read(1 << 20):
                pass
            in_order = time.perf_counter() - start
        _forget(file.fileno())
        offsets = np.random.default_rng(0).permutation(_FILE_BYTES // _PAGE_BYTES)[:_READS] * _PAGE_BYTES
        start = time.perf_counter()
        for offset in offsets.tolist():
            os.pread(file.fileno(), _PAGE_BYTES, offset)
        return (time.perf_counter() - start) / _READS, _FILE_BYTES / max(in_order, 1e-9)


def _forget(descriptor: int) -> None:
    """Ask the system to drop the file's pages from its cache, where it can."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

"""One peer of `benchmarks.unfiltered_search` in an interpreter of its own, which need not have this project.

`python _search_peers.py PEER FOLDER RECALL...`: PEER is hnswlib, lancedb or autofaiss, FOLDER holds
`vectors/`, `queries.npy` and `truth.npy`. Prints one JSON object a recall.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

K = 10
SINGLE, REPEATS = 200, 3
Rows = np.ndarray


def recall_of(rows: Rows, truth: Rows) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows.tolist(), truth.tolist())]))  # noqa: B905


def least(
    set_value: Callable[[int], None],
    search: Callable[[Rows], Rows],
    high: int,
    queries: Rows,
    truth: Rows,
    target: float,
) -> int:
    """The least value in [1, high] whose recall on the queries reaches the target; high, where none does."""

    def reaches(value: int) -> bool:
        set_value(value)
        return recall_of(search(queries), truth) >= target

    low, value = 0, 1
    while value < high and not reaches(value):
        low, value = value, min(2 * value, high)
    while value - low > max(low // 16, 1):
        middle = (low + value) // 2
        low, value = (low, middle) if reaches(middle) else (middle, value)
    return value


def measure(search: Callable[[Rows], Rows], queries: Rows, truth: Rows) -> dict[str, float]:
    """Recall, and processor microseconds of a query, alone and in a batch of all."""
    rows = search(queries)
    batch, single = [], []
    for _ in range(REPEATS):
        start = time.process_time()
        search(queries)
        batch.append((time.process_time() - start) / len(queries))
        each = []
        for row in range(min(SINGLE, len(queries))):
            start = time.process_time()
            search(queries[row : row + 1])
            each.append(time.process_time() - start)
        single.append(float(np.median(each)))
    return {"recall": recall_of(rows, truth), "single_us": min(single) * 1e6, "batch_us": min(batch) * 1e6}


def halves(folder: Path) -> tuple[tuple[Rows, Rows], tuple[Rows, Rows]]:
    """Queries and their neighbours to tune on, and others to measure with."""
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    middle = len(queries) // 2
    return (queries[:middle], truth[:middle]), (queries[middle:], truth[middle:])


def hnswlib(folder: Path, vectors: Rows, recalls: list[float]) -> Iterator[dict[str, Any]]:
    import hnswlib

    start = time.process_time()
    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), ef_construction=200, M=16)
    index.set_num_threads(1)
    index.add_items(vectors)
    build_s = time.process_time() - start
    index.save_index(str(folder / "hnswlib.bin"))
    size = (folder / "hnswlib.bin").stat().st_size

    def search(queries: Rows) -> Rows:
        return index.knn_query(queries, K, num_threads=1)[0].astype(np.int64)

    for target in recalls:
        tuning, measured = halves(folder)
        value = least(lambda ef: index.set_ef(max(ef, K)), search, 4096, *tuning, target)
        index.set_ef(max(value, K))
        yield {"index": f"M16, ef={value}", "build_s": build_s, "bytes": size} | measure(search, *measured)


def lancedb(folder: Path, vectors: Rows, recalls: list[float]) -> Iterator[dict[str, Any]]:
    import lancedb
    import pyarrow as pa

    start = time.process_time()
    values = pa.array(vectors.ravel())
    table = pa.table(
        {
            "row": pa.array(np.arange(len(vectors))),
            "vector": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
        }
    )
    held = lancedb.connect(str(folder / "lance")).create_table("vectors", table)
    lists = 2 ** round(np.log2(np.sqrt(len(vectors))))
    held.create_index(metric="dot", num_partitions=int(lists), index_type="IVF_FLAT")
    build_s = time.process_time() - start
    size = sum(file.stat().st_size for file in (folder / "lance").rglob("*") if file.is_file())
    chosen = {"nprobes": 1}

    def search(queries: Rows) -> Rows:
        found = np.full((len(queries), K), -1, dtype=np.int64)
        for number, query in enumerate(queries):
            plan = held.search(query).distance_type("dot").nprobes(chosen["nprobes"]).limit(K).select(["row"])
            rows = plan.to_arrow()["row"].to_numpy()
            found[number, : len(rows)] = rows
        return found

    for target in recalls:
        tuning, measured = (tuple(each[:200] for each in half) for half in halves(folder))
        value = least(lambda n: chosen.update(nprobes=n), search, int(lists), *tuning, target)
        chosen["nprobes"] = value
        yield {"index": f"IVF_FLAT {lists}, nprobes={value}", "build_s": build_s, "bytes": size} | measure(
            search, *measured
        )


def autofaiss(folder: Path, vectors: Rows, recalls: list[float]) -> Iterator[dict[str, Any]]:
    import faiss
    from autofaiss import build_index

    start = time.process_time()
    build_index(
        embeddings=str(folder / "vectors"),
        index_path=str(folder / "autofaiss.index"),
        index_infos_path=str(folder / "autofaiss.json"),
        metric_type="ip",
        file_format="npy",
        nb_cores=1,
        verbose=40,
    )
    build_s = time.process_time() - start
    index = faiss.read_index(str(folder / "autofaiss.index"))
    size = (folder / "autofaiss.index").stat().st_size
    key = json.loads((folder / "autofaiss.json").read_text())["index_key"]
    is_graph = "HNSW" in key and "IVF" not in key
    name = "efSearch" if is_graph else "nprobe"
    high = 4096 if is_graph else faiss.extract_index_ivf(index).nlist
    space = faiss.ParameterSpace()

    def search(queries: Rows) -> Rows:
        return index.search(queries, K)[1]

    for target in recalls:
        tuning, measured = halves(folder)
        value = least(lambda n: space.set_index_parameter(index, name, n), search, high, *tuning, target)
        space.set_index_parameter(index, name, value)
        yield {"index": f"{key}, {name}={value}", "build_s": build_s, "bytes": size} | measure(
            search, *measured
        )


PEERS = {"hnswlib": hnswlib, "lancedb": lancedb, "autofaiss": autofaiss}


def main() -> None:
    name, folder, *recalls = sys.argv[1:]
    vectors = np.load(next((Path(folder) / "vectors").glob("*.npy")))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print
    for result in PEERS[name](Path(folder), vectors, [float(recall) for recall in recalls]):
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()

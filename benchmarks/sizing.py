"""What `dml plan` predicts beside what is measured: `python -m benchmarks.sizing [--rows 100000 1000000]`.

Vectors are drawn around real embeddings. Each index is built as `dml index` builds it, and tuned to the
recall target with queries that are not in it. Bytes are those of the file; seconds of a build are processor
seconds on one thread to train and to add; milliseconds of a query the median of single queries on one thread
with the parameters that were found. The prediction is for the same parameters, and those that the plan begins
with stand beside them. The machine is timed again before each number of rows.
"""

import argparse
import os
import time

import faiss
import numpy as np

from benchmarks._embeddings import drawn_with_queries
from dml.reports import OperatingCurve
from dml.retrieval.cost_model import Candidate
from dml.retrieval.held_out import HeldOut, K
from dml.retrieval.index_type import IndexType
from dml.retrieval.probe import processor_name, read_rates
from dml.retrieval.rates import Rates
from dml.retrieval.sizing import estimate
from dml.retrieval.target import Target
from dml.retrieval.tune import tune

QUERIES = 500
TRAIN_PER_LIST, LEAST_TRAIN, TRAIN_SHARE, LEAST_PER_LIST = 100, 1 << 16, 0.2, 39


def factories(rows: int) -> list[str]:
    """One of each index type, with as many lists as the plan takes."""
    lists = 2 ** round(np.log2(4 * np.sqrt(rows)))
    codes = ("Flat", "SQfp16", "SQ8", "RaBitQ", "PQ64x4fs", "PQ32x4fs")
    return ["Flat", *(f"IVF{lists},{code}" for code in codes), "HNSW32"]


def build(factory: str, vectors: np.ndarray) -> tuple[faiss.Index, float]:
    """The index, and processor seconds."""
    start = time.process_time()
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    lists = getattr(faiss.try_extract_index_ivf(index), "nlist", 1)
    share = int(TRAIN_SHARE * len(vectors))
    wanted = max(min(TRAIN_PER_LIST * lists, share), LEAST_PER_LIST * lists, LEAST_TRAIN)
    chosen = np.random.default_rng(0).choice(len(vectors), min(wanted, len(vectors)), replace=False)
    index.train(vectors[np.sort(chosen)])
    index.add(vectors)
    return index, time.process_time() - start


def measure(
    factory: str, vectors: np.ndarray, flat: faiss.Index, held_out: HeldOut, recall: float, rates: Rates
) -> str:
    """One line of the table."""
    target = Target(len(vectors), vectors.shape[1], recall=recall)
    index, build_s = build(factory, vectors)
    curve: OperatingCurve = tune(index, flat, held_out, target=recall)
    begun = estimate(target, factory, rates)
    ours = estimate(target, factory, rates, parameters=curve.chosen.parameters)
    filling_s = Candidate(target, IndexType.parse(factory), 1, rates).filling_s
    pairs = [
        (ours.memory_bytes / 1e6, curve.memory_bytes / 1e6),
        (filling_s, build_s),
        (ours.latency_ms, curve.chosen.latency_ms),
    ]
    cells = [f"{first:9.3f} {second:9.3f} {first / second:5.2f}" for first, second in pairs]
    found = f"{curve.chosen.recall:.3f}  {curve.chosen.parameters or '-':24} {begun.parameters or '-'}"
    return " | ".join([f"{len(vectors):>8} {factory:18}", *cells, found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--only", nargs="+", help="factory strings; default: one of each index type")
    arguments = parser.parse_args()
    print(f"{processor_name()}, {faiss.omp_get_max_threads()} threads; recall@10 of {arguments.recall}")
    heads = ("MB of the file", "s of the build", "ms of a query")
    found = "recall, parameters found, begun with"
    print(" | ".join([f"{'rows':>8} {'index':18}", *(f"{head:25}" for head in heads), found]))
    print("predicted, measured, ratio")
    for rows in arguments.rows:
        vectors, queries = drawn_with_queries(rows, QUERIES)
        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(vectors)
        no_row = np.full(QUERIES, -2, dtype=np.int64)  # a graph finds its own rows with less than others
        held_out = HeldOut(no_row, queries, flat.search(queries, K)[1])
        rates = read_rates(again=True)  # beside others a machine is up to twice as slow as alone
        print(f"load {os.getloadavg()[0]:.1f}", flush=True)
        for factory in arguments.only or factories(rows):
            print(measure(factory, vectors, flat, held_out, arguments.recall, rates), flush=True)


if __name__ == "__main__":
    main()

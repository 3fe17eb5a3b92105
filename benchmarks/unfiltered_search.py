"""Searches without a filter, at equal recall: `python -m benchmarks.unfiltered_search [--rows 200000]`.

Ours, as `dml index` builds it: rows alone, and as an open `Searcher` answers with items; Faiss alone, tuned
by hand, by its commonest factories; autofaiss, hnswlib and LanceDB, each in the interpreter that is named for
it (without one, in this one): `uv venv peers && uv pip install --python peers hnswlib lancedb`, and another
for autofaiss, which needs faiss-cpu: `autofaiss "pyarrow<20"`. Vectors are drawn around real embeddings. Each
is tuned on half of the held-out queries to the recall and measured on the others. Processor microseconds of a
query, alone and in a batch, on one thread; build in processor seconds; memory is the size of the files.
At the end ours takes turns with Faiss by hand and with the index of autofaiss, which is one of Faiss, each at
the very recall that ours has: the ratio of queries a second is then free of the machine's load.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks._embeddings import drawn_with_queries
from benchmarks._equal_recall import ByFaiss, Search, ratio_at_equal_recall
from benchmarks._search_peers import PEERS, K, halves, measure
from benchmarks.sizing import build
from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.embedding.imported import find_vectors
from dml.retrieval.build import build_index
from dml.retrieval.bundle import read_calibration
from dml.retrieval.bundle_index import BundleIndex
from dml.retrieval.held_out import HeldOut
from dml.retrieval.index import publish_index
from dml.retrieval.tune import refined, tune
from dml.serving.searcher import Searcher

QUERIES = 1000


def write(folder: Path, rows: int) -> None:
    """The vectors that are indexed, held-out queries with mates among them, and their exact neighbours."""
    indexed, queries = drawn_with_queries(rows, QUERIES)
    (folder / "vectors").mkdir()
    np.save(folder / "vectors" / "vectors.npy", indexed)
    queries = queries[np.random.default_rng(2).permutation(QUERIES)]
    np.save(folder / "queries.npy", queries)
    _, truth = faiss.knn(queries, indexed, K, metric=faiss.METRIC_INNER_PRODUCT)
    np.save(folder / "truth.npy", truth)


def ours(folder: Path, recalls: list[float], kept: list[Search]) -> Iterator[dict[str, Any]]:
    """`dml index` with a recall target, and a `Searcher`; the build's seconds are with all it measures.

    Args:
        folder: vectors and queries.
        recalls: targets.
        kept: is given the search of rows of each target.
    """
    store = str(folder / "store")
    import_vectors(store, "vectors", folder / "vectors" / "vectors.npy")
    table = find_vectors(store, "vectors")
    for target in recalls:
        start = time.process_time()
        ref = build_index(store, "vectors", table, IndexConfig(recall=target))
        build_s = time.process_time() - start
        publish_index(store, ref)
        searcher = Searcher.open(store, "vectors")

        def search(queries: np.ndarray, searcher: Searcher = searcher) -> np.ndarray:
            found = searcher.search_vectors(queries, k=K)
            return np.array([[answer.position for answer in each.answers] for each in found])

        _, measured = halves(folder)
        size = (Path(ref.uri) / "index.faiss").stat().st_size
        index = BundleIndex(ref)

        def search_rows(queries: np.ndarray, index: BundleIndex = index) -> np.ndarray:
            return index.search_rows(queries, K, embedder=index.ref.embeddings.embedder.fingerprint)[1]

        kept.append(search_rows)
        parameters = read_calibration(ref).operating_curve.chosen.parameters
        for what, function in (("rows", search_rows), ("items", search)):
            name = f"{ref.factory} {parameters}, {what}"
            yield {"index": name, "build_s": build_s, "bytes": size} | measure(function, *measured)


def by_hand(
    folder: Path, recalls: list[float], factories: list[str], kept: list[list[ByFaiss]]
) -> Iterator[dict[str, Any]]:
    """Faiss alone: each factory with the parameters that are fastest at the recall.

    Args:
        folder: vectors and queries.
        recalls: targets.
        factories: of Faiss.
        kept: is given the index of each factory, for each target.
    """
    vectors = np.load(folder / "vectors" / "vectors.npy")
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    (queries, truth), measured = halves(folder)
    no_row = np.full(len(queries), -2, dtype=np.int64)
    for factory in factories:
        index, build_s = build(factory, vectors)
        for target, indexes in zip(recalls, kept, strict=True):
            curve = tune(index, flat, HeldOut(no_row, queries, truth), target=target)
            searched = refined(index, flat, curve.k_factor)
            indexes.append(ByFaiss(factory, index, flat, curve.k_factor))
            result = measure(lambda found, i=searched: i.search(found, K)[1], *measured)
            name = f"{factory} {curve.chosen.parameters}"
            yield {"index": name, "build_s": build_s, "bytes": curve.memory_bytes} | result


def peer(name: str, python: str, folder: Path, recalls: list[float]) -> Iterator[dict[str, Any]]:
    """A peer in its own interpreter."""
    script = Path(__file__).with_name("_search_peers.py")
    command = [python, str(script), name, str(folder), *map(str, recalls)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "RUST_LOG": "error"
    }
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        yield {"index": f"failed or not installed: uv pip install --python {python} {name}"}
    yield from map(json.loads, done.stdout.splitlines())


def show(who: str, result: dict[str, Any]) -> None:
    if "recall" not in result:
        print(f"{who:10} {result['index']}", flush=True)
        return
    print(
        f"{who:10} {result['index']:44} {result['recall']:.3f} {1e6 / result['single_us']:9,.0f} "
        f"{1e6 / result['batch_us']:9,.0f} {result['bytes'] / 1e6:9.1f} {result['build_s']:8.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--recalls", type=float, nargs="+", default=[0.95, 0.99])
    parser.add_argument("--contenders", nargs="+", default=["ours", "faiss", *PEERS])
    parser.add_argument("--factories", nargs="+", help="of Faiss by hand")
    parser.add_argument("--rounds", type=int, default=15, help="of taking turns at equal recall")
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PYTHON")
    arguments = parser.parse_args()
    lists = 2 ** round(np.log2(4 * np.sqrt(arguments.rows)))
    factories = arguments.factories or [f"IVF{lists},Flat", f"IVF{lists},PQ64x4fs", "HNSW32"]
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    print(f"{arguments.rows} x 128, load {os.getloadavg()[0]:.1f}, queries a second on one thread")
    print(f"{'':10} {'index':44} {'recall':>5} {'alone':>9} {'in batch':>9} {'MB':>9} {'build s':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, arguments.rows)
        searches: list[Search] = []
        indexes: list[list[ByFaiss]] = [[] for _ in arguments.recalls]
        for who in arguments.contenders:
            if who == "ours":
                results = ours(folder, arguments.recalls, searches)
            elif who == "faiss":
                results = by_hand(folder, arguments.recalls, factories, indexes)
            else:
                results = peer(who, pythons.get(who, sys.executable), folder, arguments.recalls)
            for result in results:
                show(who, result)
        of_autofaiss = folder / "autofaiss.index"
        print("queries a second of ours / theirs, taking turns at the recall of ours")
        for search, others in zip(searches, indexes, strict=False):
            if of_autofaiss.exists():
                index = faiss.read_index(str(of_autofaiss))
                others.append(ByFaiss("autofaiss", index, index))
            for theirs in others:
                ratio = ratio_at_equal_recall(search, theirs, *halves(folder)[1], rounds=arguments.rounds)
                print(
                    f"{theirs.name:16} {ratio.setting:16} recall {ratio.recall:.4f}: "
                    f"{ratio.alone:.3f} alone, {ratio.in_batch:.3f} in batches",
                    flush=True,
                )


if __name__ == "__main__":
    main()

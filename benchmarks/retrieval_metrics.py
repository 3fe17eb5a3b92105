"""What the metrics cost beyond the similarities they need, beside pytorch-metric-learning, OML and Faiss.

`python -m benchmarks.retrieval_metrics [ROWS DIM]`; by default the size of SOP's test set and one that the
peers can do. Each line is a process of its own: seconds by the clock, seconds of all cores together (which
others on the machine disturb less) over the bare product's, and memory beyond the embeddings. k-means is set
apart, over Faiss' own training and assignment. open-metric-learning (OML) wants NumPy below 2 and so an
environment of its own; where that is missing its line says how to make it. Its numbers are also compared with
those that our parity mode gives.
"""

import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dml.metrics import parity
from dml.metrics.intervals import bootstrap_intervals
from dml.metrics.ranking import BLOCK_ELEMENTS, Items
from dml.metrics.retrieval import query_metrics, retrieval_metrics
from dml.metrics.verification import roc_of_all_pairs
from dml.similarity import cosine_similarities

_ROWS_PER_CLASS = 5
_SIZES = [(20_000, 128), (60_502, 512)]
_PEER_UP_TO_ROWS = 20_000
_MEBI = 1 << 20
_OML_PYTHON = Path(".cache/oml/bin/python")
_HOW_TO_GET_OML = (
    "uv venv .cache/oml && uv pip install --python .cache/oml/bin/python open-metric-learning omegaconf"
)


def embeddings_and_labels(rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy copies of random class centres, made in blocks so that making them is not the peak."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) // _ROWS_PER_CLASS
    centers = torch.randn(int(labels[-1]) + 1, dim, generator=generator)
    embeddings = torch.empty(rows, dim)
    for start in range(0, rows, 1024):
        block = slice(start, start + 1024)
        noise = torch.randn(len(labels[block]), dim, generator=generator)
        embeddings[block] = torch.nn.functional.normalize(centers[labels[block]] + 2.5 * noise)
    return embeddings, labels


def bare_product(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    """The similarities in blocks of the same size, nothing made of them."""
    block = BLOCK_ELEMENTS // len(labels)
    for start in range(0, len(labels), block):
        cosine_similarities(embeddings[start : start + block], embeddings)


def usual(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    """Recall@1, 2, 4, 8, R-precision, MAP@R."""
    retrieval_metrics(embeddings, labels)


def all_retrieval_metrics(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    """Those, precisions, MAP@K in three spellings, micro and macro means, and intervals by class."""
    metrics = query_metrics(
        Items(embeddings, labels),
        precision_at=(1, 5, 10),
        map_at=(5, 10),
        map_denominators=("relevant", "attainable", "retrieved"),
    )
    metrics.means(), metrics.class_means()
    bootstrap_intervals(metrics.values, metrics.labels)


def recall_at_1000(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    """SOP's protocol: Recall@1, 10, 100, 1000."""
    retrieval_metrics(embeddings, labels, recall_at=(1, 10, 100, min(1000, len(labels) - 1)))


def verification_of_all_pairs(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    roc_of_all_pairs(embeddings, labels, false_accept_rates=(1e-3,)).at_false_accept_rate(1e-3)


def pytorch_metric_learning(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    """Its exact search by Faiss, as deep as MAP@R needs."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu")).get_accuracy(
        embeddings, labels
    )


def open_metric_learning_as_parity(embeddings: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """What its own code gives, by ours."""
    items = Items(embeddings, labels, torch.arange(len(labels)))
    return parity.open_metric_learning(items, top_k=(1, 5, 10))


def k_means_of_faiss(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    import faiss

    from dml.evaluation.kmeans import ITERATIONS

    kmeans = faiss.Clustering(embeddings.shape[1], int(labels.max()) + 1)
    kmeans.niter, kmeans.min_points_per_centroid, kmeans.max_points_per_centroid = ITERATIONS, 1, len(labels)
    index = faiss.IndexFlatL2(embeddings.shape[1])
    kmeans.train(embeddings.numpy(), index)
    index.search(embeddings.numpy(), 1)


def k_means_with_nmi_f1_and_ami(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    from dml.evaluation.kmeans import k_means
    from dml.metrics import clustering

    clusters = torch.from_numpy(k_means(embeddings.numpy(), int(labels.max()) + 1))
    clustering.normalized_mutual_information(labels, clusters)
    clustering.pairwise_f1(labels, clusters)
    clustering.adjusted_mutual_information(labels, clusters)


def _measure(function: Callable[..., object], rows: int, dim: int) -> tuple[float, float, float]:
    """(seconds, seconds of all cores, MiB at the peak beyond what stood before)."""
    embeddings, labels = embeddings_and_labels(rows, dim)
    function(embeddings[:512].clone(), labels[:512].clone())  # imports and thread pools
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    start, start_cpu = time.perf_counter(), time.process_time()
    function(embeddings, labels)
    seconds, seconds_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return seconds, seconds_cpu, max(peak - before, 0) / _MEBI


def _print_block(functions: list[Callable[..., object]], rows: int, dim: int, *, oml: bool = False) -> None:
    """One line each, over the first."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        heading = f"{rows} x {dim}"
        print(f"\n{heading:<30}{'seconds':>9}{'of cores':>10}{'/ first':>9}{'MiB beyond':>12}")
        first = 0.0
        for function in functions:
            measured = pool.apply(_measure, (function, rows, dim))
            first = first or measured[1]
            print(_line(function.__name__, measured, first), flush=True)
    if oml:
        print(_line_of_oml(rows, dim, first), flush=True)


def _line(name: str, measured: tuple[float, float, float], first: float) -> str:
    seconds, seconds_cpu, mebibytes = measured
    return f"{name:<30}{seconds:>9.2f}{seconds_cpu:>10.2f}{seconds_cpu / first:>9.2f}{mebibytes:>12.0f}"


def _line_of_oml(rows: int, dim: int, first: float) -> str:
    if not _OML_PYTHON.exists():
        return f"open_metric_learning: not measured; there is no {_OML_PYTHON}. {_HOW_TO_GET_OML}"
    embeddings, labels = embeddings_and_labels(rows, dim)
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, name)) for name in ("embeddings.npy", "labels.npy")]
        for file, column in zip(files, (embeddings, labels), strict=True):
            np.save(file, column.numpy())
        script = Path(__file__).with_name("_oml.py")
        command = [str(_OML_PYTHON), str(script), *files, str(torch.get_num_threads())]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = json.loads(out.splitlines()[-1])
    ours = open_metric_learning_as_parity(embeddings, labels)
    apart = max(abs(ours[name] - value) for name, value in theirs["metrics"].items())
    line = _line("open_metric_learning", theirs["measured"], first)
    return f"{line}\n  its {len(ours)} numbers by our parity mode: at most {apart:.1e} apart"


def main() -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    load = os.getloadavg()[0]
    print(f"commit {commit.stdout.strip()}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}")
    sizes = [(int(sys.argv[1]), int(sys.argv[2]))] if len(sys.argv) == 3 else _SIZES
    for rows, dim in sizes:
        functions: list[Callable[..., object]] = [
            bare_product,
            usual,
            all_retrieval_metrics,
            recall_at_1000,
            verification_of_all_pairs,
        ]
        if rows <= _PEER_UP_TO_ROWS:
            functions.append(pytorch_metric_learning)
        _print_block(functions, rows, dim, oml=rows <= _PEER_UP_TO_ROWS)
    for rows, dim in sizes:
        _print_block([k_means_of_faiss, k_means_with_nmi_f1_and_ami], rows, dim)


if __name__ == "__main__":
    main()

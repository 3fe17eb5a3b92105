"""What the retrieval metrics cost beyond the similarities they need, beside pytorch-metric-learning.

`python -m benchmarks.retrieval_metrics [ROWS DIM]`; by default the size of SOP's test set and one that
pytorch-metric-learning can do. Each line is a process of its own: seconds, and memory beyond the embeddings.
"""

import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from dml.metrics import retrieval
from dml.similarity import cosine_similarities

_ROWS_PER_CLASS = 5
_SIZES = [(20_000, 128), (60_502, 512)]
_PEER_UP_TO_ROWS = 20_000
_MEBI = 1 << 20


def embeddings_and_labels(rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy copies of random class centres, made in blocks so that making them is not the peak."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) // _ROWS_PER_CLASS
    centres = torch.randn(int(labels[-1]) + 1, dim, generator=generator)
    embeddings = torch.empty(rows, dim)
    for start in range(0, rows, 1024):
        own = slice(start, start + 1024)
        noise = torch.randn(len(labels[own]), dim, generator=generator)
        embeddings[own] = torch.nn.functional.normalize(centres[labels[own]] + 2.5 * noise)
    return embeddings, labels


def bare_product(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    """The similarities in the same blocks, nothing made of them."""
    block = retrieval._BLOCK_ELEMENTS // len(labels)
    for start in range(0, len(labels), block):
        cosine_similarities(embeddings[start : start + block], embeddings)


def ours(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    retrieval.retrieval_metrics(embeddings, labels)


def pytorch_metric_learning(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    """Its exact search by Faiss, as deep as MAP@R needs."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu")).get_accuracy(
        embeddings, labels
    )


def _measure(function: Callable[..., None], rows: int, dim: int) -> tuple[float, float]:
    """(seconds, MiB at the peak beyond what stood before)."""
    embeddings, labels = embeddings_and_labels(rows, dim)
    function(embeddings[:512].clone(), labels[:512].clone())  # imports and thread pools
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    start = time.perf_counter()
    function(embeddings, labels)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return seconds, max(peak - before, 0) / _MEBI


def main() -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    load = os.getloadavg()[0]
    print(f"commit {commit.stdout.strip()}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}")
    sizes = [(int(sys.argv[1]), int(sys.argv[2]))] if len(sys.argv) == 3 else _SIZES
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for rows, dim in sizes:
            functions = [bare_product, ours]
            if rows <= _PEER_UP_TO_ROWS:
                functions.append(pytorch_metric_learning)
            measured = [pool.apply(_measure, (function, rows, dim)) for function in functions]
            print(f"\n{rows} x {dim}{'seconds':>24}{'/ product':>12}{'MiB beyond':>12}")
            for function, (seconds, mebibytes) in zip(functions, measured, strict=True):
                ratio = seconds / measured[0][0]
                print(f"{function.__name__:<24}{seconds:>15.2f}{ratio:>12.2f}{mebibytes:>12.0f}")


if __name__ == "__main__":
    main()

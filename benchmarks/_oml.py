"""open-metric-learning's numbers, by a Python that has it: `PYTHON _oml.py EMBEDDINGS LABELS THREADS`.

It needs NumPy below 2, so it runs in a separate environment and exchanges .npy files with the benchmark.
Prints JSON: seconds, seconds of all cores, MiB at the peak beyond what stood before; and its metrics.
"""

import json
import resource
import sys
import time

import numpy as np
import torch
from oml.functional.knn import batched_knn
from oml.functional.metrics import calc_retrieval_metrics

TOP_K = (1, 5, 10)


def evaluate(embeddings: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Its search and its CMC, precision and MAP, as its `EmbeddingMetrics` calls them."""
    rows = torch.arange(len(labels))
    _, retrieved, relevant = batched_knn(embeddings, rows, rows, top_n=max(TOP_K), labels_gt=labels)
    metrics = calc_retrieval_metrics(
        retrieved, relevant, cmc_top_k=TOP_K, precision_top_k=TOP_K, map_top_k=TOP_K, verbose=False
    )
    return {f"{name}_{k}": float(value) for name, values in metrics.items() for k, value in values.items()}


def main() -> None:
    torch.set_num_threads(int(sys.argv[3]))
    embeddings, labels = (torch.from_numpy(np.load(path)) for path in sys.argv[1:3])
    evaluate(embeddings[:512], labels[:512])  # imports and thread pools
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    start, start_cpu = time.perf_counter(), time.process_time()
    metrics = evaluate(embeddings, labels)
    seconds, seconds_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    mebibytes = max(peak - before, 0) / (1 << 20)
    print(json.dumps({"measured": [seconds, seconds_cpu, mebibytes], "metrics": metrics}))


if __name__ == "__main__":
    main()

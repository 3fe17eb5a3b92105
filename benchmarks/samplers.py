"""What planning batches costs: `python -m benchmarks.samplers [ROWS CLASSES]`, by default 10^7 and 10^6.

Each line is a fresh process: CPU seconds from class ids in memory to the first batch, and for one a thousand
epochs later; the memory this takes at its peak beyond imports, class ids and class vectors; then batches per
CPU second.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import numpy as np

from dml.data import sampling

P, K = 28, 4
NUM_VALUES = 1000
REFRESH_EVERY_STEPS = 100
DIM = 128
_MEBI = 1 << 20
_STEPS = 10**12


class Cost(NamedTuple):
    first_s: float
    far_s: float
    peak_mebibytes: float
    batches_per_s: float


def pk(class_ids: np.ndarray, p: int = P) -> sampling.BatchSampler:
    return sampling.PKBatchSampler(
        class_ids, classes_per_batch=p, samples_per_class=K, stream=sampling.Stream(_STEPS)
    )


def pk_of_a_thousand_classes(class_ids: np.ndarray) -> sampling.BatchSampler:
    return pk(class_ids, p=1000)


def attribute(class_ids: np.ndarray) -> sampling.BatchSampler:
    return sampling.AttributeBatchSampler(
        class_ids,
        class_ids % NUM_VALUES,
        classes_per_batch=P,
        samples_per_class=K,
        stream=sampling.Stream(_STEPS),
    )


@cache
def class_vectors(num_classes: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((num_classes, DIM), dtype=np.float32)


def similar(class_ids: np.ndarray) -> sampling.BatchSampler:
    return sampling.SimilarClassBatchSampler(
        class_ids,
        classes_per_batch=P,
        samples_per_class=K,
        refresh_every_steps=REFRESH_EVERY_STEPS,
        class_vectors=class_vectors(int(class_ids.max()) + 1),
        stream=sampling.Stream(_STEPS),
    )


def shuffled(class_ids: np.ndarray) -> sampling.BatchSampler:
    return sampling.ShuffledBatchSampler(len(class_ids), batch_size=P * K, stream=sampling.Stream(_STEPS))


def pytorch_metric_learning(class_ids: np.ndarray) -> Iterable[int]:
    """Its only P x K sampler; it has no steps to go to, so there is no batch far away."""
    from pytorch_metric_learning.samplers import MPerClassSampler

    return MPerClassSampler(class_ids, m=K, batch_size=P * K, length_before_new_iter=len(class_ids))


def measure(make: Callable[[np.ndarray], object], num_rows: int, num_classes: int, repeats: int) -> Cost:
    make(np.repeat(np.arange(P * NUM_VALUES), K))  # imports and first calls
    class_ids = np.random.default_rng(0).integers(0, num_classes, num_rows)
    if make is similar:
        class_vectors(int(class_ids.max()) + 1)  # given to it, not its own
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    began = time.process_time()
    made = make(class_ids)
    if not isinstance(made, sampling.BatchSampler):
        rows = iter(made)
        next(rows)
        return Cost(time.process_time() - began, float("nan"), _peak_beyond(before), float("nan"))
    made.batch(0)
    first_s = time.process_time() - began
    far = 1000 * (num_rows // made.batch_size) + 7
    began = time.process_time()
    made.batch(far)
    far_s = time.process_time() - began
    peak = _peak_beyond(before)
    began = time.process_time()
    for step in range(far, far + repeats):
        made.batch(step)
    return Cost(first_s, far_s, peak, repeats / (time.process_time() - began))


def _peak_beyond(before: int) -> float:
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / _MEBI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", type=int, nargs="*", default=[10_000_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--timeout-s", type=int, default=120)
    arguments = parser.parse_args()
    num_rows, num_classes = arguments.size
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    load = os.getloadavg()[0]
    print(f"commit {commit.stdout.strip()}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}")
    print(f"{num_rows} rows of {num_classes} classes, K = {K}, P = {P} where not said otherwise;")
    print(f"{NUM_VALUES} values of the attribute; similar classes: {REFRESH_EVERY_STEPS} steps, D = {DIM}\n")
    print(f"{'':<26}{'first, s':>10}{'far, s':>10}{'MiB beyond':>12}{'batches/s':>11}")
    functions = [pk, pk_of_a_thousand_classes, attribute, similar, shuffled, pytorch_metric_learning]
    for function in functions:
        name = function.__name__.replace("_", " ")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measuring = pool.apply_async(measure, (function, num_rows, num_classes, arguments.repeats))
            try:
                cost = measuring.get(arguments.timeout_s)
            except multiprocessing.TimeoutError:
                print(f"{name:<26}{f'> {arguments.timeout_s}':>10}", flush=True)
                continue
        print(
            f"{name:<26}{cost.first_s:>10.2f}{cost.far_s:>10.2f}{cost.peak_mebibytes:>12.0f}"
            f"{cost.batches_per_s:>11.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

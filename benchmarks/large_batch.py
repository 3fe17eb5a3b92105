"""Time and memory of plain and of cached-gradient steps on large batches: `python -m benchmarks.large_batch`.

A step is the trainer's: conv4 on 28-pixel images, multi-similarity with its miner, forward, backward and
AdamW, on W gloo workers of one thread each. Seconds are the median of several steps after a first: by the
clock, and of CPU time on the busiest worker, which others on the machine disturb least. Memory is the peak of
the largest worker beyond what it held with images, model and a small step behind it. Each row is a group of
fresh processes.

Batch norm: over all images in the plain step, over each chunk in the cached one.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dml.config import Conv4Config, EncoderConfig
from dml.losses import MultiSimilarity
from dml.models.encoder import Encoder
from dml.training.batch_norm import synchronize_batch_norm
from dml.training.cached_step import cached_train_step
from dml.training.spawn import run_ranks
from dml.training.step import Learner, train_step

SAMPLES_PER_CLASS = 4
PIXELS = 28


def take_steps(size: int, chunk_rows: int | None, repeats: int) -> dict[str, float]:
    """On this rank: median seconds of a step, and the bytes it added at its peak."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(rank)
    share = size // world_size
    images = torch.randn(share, 1, PIXELS, PIXELS, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = (torch.arange(share) + rank * share) // SAMPLES_PER_CLASS
    encoder = Encoder(EncoderConfig(backbone=Conv4Config(), dim=64), channels=1)
    encoder = encoder.to(memory_format=torch.channels_last)
    if chunk_rows is None and world_size > 1:
        synchronize_batch_norm(encoder, torch.device("cpu"))
    learner = Learner(encoder, MultiSimilarity(), "float32").train()
    wrapped: nn.Module = learner
    if chunk_rows is None and world_size > 1:
        wrapped = DistributedDataParallel(learner)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)

    def step(rows: int) -> float:
        if chunk_rows is None:
            return train_step(wrapped, optimizer, images[:rows], labels[:rows], clip_norm=None)
        return cached_train_step(
            learner, optimizer, images[:rows], labels[:rows], chunk_rows=min(chunk_rows, rows), clip_norm=None
        )

    step(16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(share)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    wall_s, cpu_s = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        step(share)
        wall_s.append(time.perf_counter() - start)
        cpu_s.append(time.process_time() - start_cpu)
    return {
        "wall_s": statistics.median(wall_s),
        "cpu_s": statistics.median(cpu_s),
        "size_bytes": peak * 1024.0,
    }


def measure(world_size: int, size: int, chunk_rows: int | None, repeats: int) -> dict[str, float] | str:
    """The largest figures over ranks, or why there are none."""
    try:
        ranks = run_ranks(world_size, take_steps, size, chunk_rows, repeats, timeout_s=1200)
    except RuntimeError:
        return "failed"
    return {name: max(rank[name] for rank in ranks) for name in ranks[0]}


def available_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--chunk-rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(
        f"commit {commit.stdout.strip()}, torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores; chunks of {arguments.chunk_rows}"
    )
    bytes_per_image: dict[tuple[int, str], float] = {}
    for size in arguments.sizes:
        for world_size in arguments.world_sizes:
            for name, chunk_rows in (("plain", None), ("cached", arguments.chunk_rows)):
                expected = size * bytes_per_image.get((world_size, name), 0.0)
                if name == "plain" and expected > available_bytes():
                    row = f"not tried: by its last row it needs {expected / 2**20:.0f} MiB, more than is free"
                    print(f"B = {size:6} W = {world_size} {name:6} {row}", flush=True)
                    continue
                found = measure(world_size, size, chunk_rows, arguments.repeats)
                row = (
                    found
                    if isinstance(found, str)
                    else (
                        f"{found['wall_s']:8.2f} s {found['cpu_s']:8.2f} CPU s "
                        f"{found['size_bytes'] / 2**20:7.0f} MiB per worker"
                    )
                )
                if not isinstance(found, str):
                    bytes_per_image[world_size, name] = found["size_bytes"] * world_size / size
                print(f"B = {size:6} W = {world_size} {name:6} {row}", flush=True)


if __name__ == "__main__":
    main()

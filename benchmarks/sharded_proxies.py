"""Proxies cut over workers: seconds and memory for each: `python -m benchmarks.sharded_proxies`.

Every worker is a process of one thread in a gloo group on this machine, with a linear encoder, its shard of a
CosFace loss and fused AdamW. Memory is the process's peak beyond what it had before the loss was made; beside
it what no worker can do without: proxies, their gradient and two moments, 16 bytes for each of its values.
Seconds are of the clock, the median of the steps after the first; workers share the machine's cores.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dml import losses
from dml.training.gather import gather
from dml.training.spawn import run_ranks

DIM = 128
BATCH_SIZE = 128
MIB = 1 << 20


class Learner(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Linear(DIM, DIM)
        self.loss = loss

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        embeddings = nn.functional.normalize(self.encoder(images))
        return self.loss(embeddings, labels, gather(embeddings, labels))


@dataclass(frozen=True)
class Measured:
    initialize_s: float
    step_s: float
    peak_bytes: int
    first_loss: float
    last_loss: float


def train(num_classes: int, sample_rate: float | None, num_steps: int) -> Measured:
    """What one rank of the group sees of a few steps on the same batch."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    _steps(losses.CosFace(64, DIM, sharded=True), 64, rank, world_size, 2)  # loads what is loaded once
    before = _peak_bytes()
    start = time.perf_counter()
    loss = losses.CosFace(num_classes, DIM, seed=0, sharded=True, scale=16, sample_rate=sample_rate)
    initialized = time.perf_counter()
    seconds, values = _steps(loss, num_classes, rank, world_size, num_steps)
    return Measured(
        initialized - start,
        statistics.median(seconds[1:]),
        _peak_bytes() - before,
        values[0],
        values[-1],
    )


def _steps(
    loss: nn.Module, num_classes: int, rank: int, world_size: int, num_steps: int
) -> tuple[list[float], list[float]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH_SIZE, DIM, generator=generator).chunk(world_size)[rank]
    labels = torch.randint(0, num_classes, (BATCH_SIZE,), generator=generator).chunk(world_size)[rank]
    torch.manual_seed(0)
    learner = Learner(loss)
    losses.keep_shards_local(learner)
    wrapped = DistributedDataParallel(learner)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.002, fused=True)
    seconds, values = [], []
    for _ in range(num_steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        value = wrapped(images, labels)
        value.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        values.append(float(value.detach()))
    return seconds, values


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(num_classes: int, world_size: int, sample_rate: float | None, num_steps: int) -> None:
    found = run_ranks(world_size, train, num_classes, sample_rate, num_steps, timeout_s=900)
    needed = -(-num_classes // world_size) * DIM * 16
    share = "all" if sample_rate is None else f"{sample_rate:.0%}"
    start_s, step_s = (max(getattr(each, of) for each in found) for of in ("initialise_s", "step_s"))
    peak = max(each.peak_bytes for each in found)
    print(
        f"{num_classes:>9,} {world_size:>2} {share:>5} {start_s:>8.1f} s {step_s:>8.2f} s "
        f"{peak / MIB:>8.0f} MiB {needed / MIB:>8.0f} MiB   {found[0].first_loss:.3f} to "
        f"{found[0].last_loss:.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1_000_000, help="of the large run, on 2 workers")
    parser.add_argument("--classes-compared", type=int, default=200_000, help="on 1, 2 and 4 workers")
    parser.add_argument("--sample-rate", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(
        f"commit {commit.stdout.strip()}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} "
        f"cores, one thread for each worker; D = {DIM}, B = {BATCH_SIZE}, CosFace, AdamW"
    )
    print(f"{'C':>9} {'W':>2} {'met':>5} {'start':>10} {'step':>10} {'peak':>12} {'needed':>12}   loss")
    for rate in (None, arguments.sample_rate):
        for world_size in (1, 2, 4):
            show(arguments.classes_compared, world_size, rate, arguments.steps)
    for rate in (None, arguments.sample_rate):
        show(arguments.classes, 2, rate, arguments.steps)


if __name__ == "__main__":
    main()

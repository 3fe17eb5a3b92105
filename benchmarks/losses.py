"""Time and memory of the losses beside pytorch-metric-learning: `python -m benchmarks.losses`.

Time is CPU time on one thread, which others on the machine disturb least: forward and backward, over the
floor of X @ X.T and its backward. Memory is the peak beyond what was there before, over a B x B matrix of
float32. Each measurement is a process of its own of at most 8 GiB, the median of several runs after one to
warm up. `--sizes 65536 --ours` shows that the losses fit where a matrix of similarities would not.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dml import losses

DIM = 128
SAMPLES_PER_CLASS = 4
NUM_THREADS = 1
SIZE_LIMIT_BYTES = 8 << 30
FLOOR_UP_TO = 8192  # beyond it the floor, whose matrix would not fit, is taken to grow with B^2


class Floor(nn.Module):
    """The similarity matrix, and the backward that every pair loss needs."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return (embeddings @ embeddings.T).sum()


def ours(num_classes: int) -> dict[str, Callable[[], nn.Module]]:
    return {
        "contrastive": losses.Contrastive,
        "triplet, all": lambda: losses.TripletMargin(mining="all"),
        "triplet, semi-hard": losses.TripletMargin,
        "triplet, batch-hard": lambda: losses.TripletMargin(mining="batch_hard"),
        "triplet, soft-hard": lambda: losses.TripletMargin(mining="soft_hard"),
        "margin, distance-weighted": losses.Margin,
        "N-pair": losses.NPair,
        "lifted structure": losses.LiftedStructure,
        "generalized lifted structure": losses.GeneralizedLiftedStructure,
        "ranked list": losses.RankedList,
        "multi-similarity, mined": losses.MultiSimilarity,
        "SupCon": losses.SupCon,
        "NT-Xent": losses.NTXent,
        "circle": losses.Circle,
        "Smooth-AP": losses.SmoothAP,
        "Recall@k": losses.RecallAtK,
        "normalized softmax": lambda: losses.NormalizedSoftmax(num_classes, DIM),
        "ArcFace": lambda: losses.ArcFace(num_classes, DIM),
        "Proxy-NCA++": lambda: losses.ProxyNCAPlusPlus(num_classes, DIM),
        "Proxy-Anchor": lambda: losses.ProxyAnchor(num_classes, DIM),
    }


def peers(num_classes: int) -> dict[str, Callable[[], nn.Module]]:
    """The same losses, as near as pytorch-metric-learning has them."""
    from pytorch_metric_learning import distances, losses, miners

    def triplet(mining: str) -> nn.Module:
        squared = distances.LpDistance(power=2)
        mined = {
            "all": None,
            "semi_hard": miners.TripletMarginMiner(0.2, "semihard", distance=squared),
            "batch_hard": miners.BatchHardMiner(distance=squared),
        }
        return Mined(losses.TripletMarginLoss(0.2, distance=squared), mined[mining])

    return {
        "contrastive": losses.ContrastiveLoss,
        "triplet, all": lambda: triplet("all"),
        "triplet, semi-hard": lambda: triplet("semi_hard"),
        "triplet, batch-hard": lambda: triplet("batch_hard"),
        "margin, distance-weighted": lambda: Mined(losses.MarginLoss(), miners.DistanceWeightedMiner()),
        "N-pair": losses.NPairsLoss,
        "lifted structure": losses.LiftedStructureLoss,
        "generalized lifted structure": losses.GeneralizedLiftedStructureLoss,
        "ranked list": lambda: losses.RankedListLoss(0.4, 10, alpha=1.2),
        "multi-similarity, mined": lambda: Mined(
            losses.MultiSimilarityLoss(2, 50, 0.5), miners.MultiSimilarityMiner(0.1)
        ),
        "SupCon": lambda: losses.SupConLoss(0.1),
        "NT-Xent": lambda: losses.NTXentLoss(0.1),
        "circle": lambda: losses.CircleLoss(0.4, 80),
        "Smooth-AP": lambda: losses.SmoothAPLoss(0.01),
        "normalized softmax": lambda: losses.NormalizedSoftmaxLoss(num_classes, DIM),
        "ArcFace": lambda: losses.ArcFaceLoss(num_classes, DIM),
        "Proxy-NCA++": lambda: losses.ProxyNCALoss(num_classes, DIM, softmax_scale=9),
        "Proxy-Anchor": lambda: losses.ProxyAnchorLoss(num_classes, DIM),
    }


class Mined(nn.Module):
    """A loss of pytorch-metric-learning behind its miner."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.loss(embeddings, labels, self.miner and self.miner(embeddings, labels))


def measure(make: Callable[[], nn.Module], size: int, repeats: int) -> dict[str, float]:
    """Median CPU seconds of forward and backward, and the bytes they add to the process at its peak."""
    torch.set_num_threads(NUM_THREADS)
    generator = torch.Generator().manual_seed(0)
    embeddings = nn.functional.normalize(torch.randn(size, DIM, generator=generator)).requires_grad_()
    labels = torch.arange(size) // SAMPLES_PER_CLASS
    loss = make()
    small = slice(0, 32)
    loss(embeddings[small], labels[small]).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss(embeddings, labels).backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        loss(embeddings, labels).backward()
        seconds.append(time.process_time() - start)
    return {"seconds": statistics.median(seconds), "size_bytes": peak * 1024.0}


def measure_apart(
    library: str, name: str, size: int, repeats: int, timeout_s: float
) -> dict[str, float] | str:
    """`measure` in a fresh process, so that one loss's peak does not hide another's; or why there is none."""
    command = [sys.executable, "-m", "benchmarks.losses", "--one", library, name, str(size), str(repeats)]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, preexec_fn=_limit_memory
        )
    except subprocess.TimeoutExpired:
        return f"> {timeout_s:.0f} s"
    if process.returncode == 0:
        return json.loads(process.stdout)
    return "out of memory" if "memory" in process.stderr else process.stderr.strip().rsplit("\n", 1)[-1][:30]


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (SIZE_LIMIT_BYTES, SIZE_LIMIT_BYTES))


def show(measured: dict[str, float] | str, floor_s: float, size: int) -> str:
    if isinstance(measured, str):
        return f"{measured:>17}"
    return f"{measured['seconds'] / floor_s:7.1f}x {measured['size_bytes'] / (4 * size**2):5.1f} B^2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ours", action="store_true", help="leave the peer out")
    parser.add_argument("--only", nargs="+", help="losses whose name contains one of these words")
    parser.add_argument("--timeout-s", type=float, default=120)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        library, name, size, repeats = arguments.one
        made = {"floor": lambda _: {name: Floor}, "ours": ours, "peers": peers}[library]
        print(json.dumps(measure(made(int(size) // SAMPLES_PER_CLASS)[name], int(size), int(repeats))))
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    print(f"commit {commit}, torch {torch.__version__}, {platform.machine()}, {NUM_THREADS} thread")
    print(f"D = {DIM}, K = {SAMPLES_PER_CLASS}; time and memory, ours | pytorch-metric-learning")
    for size in arguments.sizes:
        floor_size = min(size, FLOOR_UP_TO)
        floor = measure_apart("floor", "floor", floor_size, 3 * arguments.repeats, arguments.timeout_s)
        assert not isinstance(floor, str), floor
        floor["seconds"] *= (size / floor_size) ** 2
        print(f"\nB = {size}: floor {floor['seconds'] * 1000:.1f} ms")
        for name in ours(1):
            if arguments.only and not any(word in name for word in arguments.only):
                continue
            libraries = ["ours", "peers"] if name in peers(1) and not arguments.ours else ["ours"]
            row = [
                show(
                    measure_apart(library, name, size, arguments.repeats, arguments.timeout_s),
                    floor["seconds"],
                    size,
                )
                for library in libraries
            ]
            print(f"{name:26} {' | '.join(row)}", flush=True)


if __name__ == "__main__":
    main()

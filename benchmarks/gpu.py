"""What a GPU makes of its own rates: `python -m benchmarks --gpu`, in less than eight minutes.

The card's matrix products (float32, TF32, bfloat16) and its copies within the device are measured first; the
rest is told beside them. Seconds are of the device's own clock, the median of several runs after a first;
memory is torch's peak beyond what was there before.

- All pairs of 60,502 x 512, retrieval and verification: over the product at the float32 rate.
- A training step of ResNet50 in each precision, as images/s and as a share of that precision's product rate;
  then the whole loop, images in memory, over the quickest step.
- Losses, forward and backward, beside pytorch-metric-learning (PML) where it is installed: over the three
  products of X @ X.T and its backward at the float32 rate, for their similarities are float32.

Needs torch, timm, NumPy, PyArrow and pydantic. `--device cpu --quick` only shows that it runs.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.losses import DIM, SAMPLES_PER_CLASS, ours, peers
from dml.config import EncoderConfig, TimmConfig
from dml.config.training import Precision
from dml.data.batches import Batch
from dml.data.sampling import BatchSampler
from dml.losses import MultiSimilarity
from dml.metrics.retrieval import retrieval_metrics
from dml.metrics.verification import roc_of_all_pairs
from dml.models.encoder import Encoder
from dml.models.precision import convolutions_in
from dml.presets import experiment
from dml.training.loop import Hooks, train_on
from dml.training.optimizer import build_optimizer
from dml.training.step import Learner, train_step
from dml.training.validation import ValidationSet
from dml.training.worker import Worker

LIMIT_S = 420.0
LONG_S = 2.0
RUN_LIMIT_S = 10.0  # of one run, as its run at the size before lets expect
RESNET50_FLOP = (
    3 * 2 * 4.09e9
)  # an image of 224 x 224 forward and twice that backward: He et al. 2016, table 1


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    product: int
    copy_bytes: int
    batches: tuple[int, ...]
    images: int
    pixels: int
    gallery: tuple[int, int]
    repeats: int


FULL = Sizes(8192, 1 << 30, (256, 1024, 4096, 32768), 128, 224, (60_502, 512), 5)
QUICK = Sizes(256, 1 << 22, (64, 128), 8, 64, (500, 32), 1)


@dataclass(frozen=True)
class Row:
    """One line of the table, and of the JSON."""

    part: str
    what: str
    seconds: float | None = None
    rate: float | None = None
    unit: str = ""
    floor: float | None = None
    """Seconds over those of the floor."""
    share: float | None = None
    """Of the product rate, or for the loop of the step's images/s."""
    peak_bytes: int | None = None
    remark: str = ""
    failed: bool = False

    def line(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds * 1000:10.2f} ms"
        rate = "" if self.rate is None else f"{self.rate:9.1f} {self.unit}"
        floor = "" if self.floor is None else f"{self.floor:8.2f}x"
        peak = "" if self.peak_bytes is None else f"{self.peak_bytes / 2**20:9.0f} MiB"
        share = "" if self.share is None else f"{self.share:8.1%}"
        numbers = f"{seconds:>14}{rate:>20}{floor:>10}{share:>10}{peak:>14}"
        return f"{self.part:11}{self.what:44}{numbers}  {self.remark}".rstrip()


class Device:
    """Where it is measured, and by which clock."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.is_cuda = device.type == "cuda"

    def seconds(self, run: Callable[[], object], *, repeats: int | None = None) -> tuple[float, int | None]:
        """Median seconds of a run after a first, or of one where it is long; and its peak memory in bytes."""
        run()
        before = self._begin()
        first = self._one(run)
        peak = self._peak(before)
        if first > LONG_S:
            return first, peak
        return statistics.median([first, *(self._one(run) for _ in range(repeats or self.repeats))]), peak

    def _begin(self) -> int:
        if not self.is_cuda:
            return 0
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def _peak(self, before: int) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) - before if self.is_cuda else None

    def _one(self, run: Callable[[], object]) -> float:
        if not self.is_cuda:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        run()
        ended.record()
        torch.cuda.synchronize(self.device)
        return began.elapsed_time(ended) / 1000

    def description(self) -> dict[str, Any]:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        found = {"commit": commit.stdout.strip() or "unknown", "torch": torch.__version__}
        if not self.is_cuda:
            return {**found, "card": "no GPU: the CPU", "threads": torch.get_num_threads()}
        card = torch.cuda.get_device_properties(self.device)
        return {
            **found,
            "card": card.name,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "memory_gib": round(card.total_memory / 2**30, 1),
            "compute_capability": f"{card.major}.{card.minor}",
        }


def rates(on: Device, sizes: Sizes) -> Iterator[Row]:
    """Products of size^3, and a copy within the device, which reads and writes every byte."""
    size = sizes.product
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        if tf32 and not on.is_cuda:
            continue
        left, right = (torch.randn(size, size, device=on.device, dtype=dtype) for _ in range(2))
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        seconds, _ = on.seconds(lambda left=left, right=right: left @ right)
        torch.set_float32_matmul_precision("highest")
        yield Row("rates", f"product {name}, {size} cubed", seconds, 2 * size**3 / seconds / 1e12, "TFLOP/s")
    source = torch.empty(sizes.copy_bytes, dtype=torch.uint8, device=on.device).random_()
    target = torch.empty_like(source)
    seconds, _ = on.seconds(lambda: target.copy_(source))
    yield Row("rates", "copy, read and written", seconds, 2 * sizes.copy_bytes / seconds / 1e9, "GB/s")


def losses(on: Device, sizes: Sizes, product_rate: float) -> Iterator[Row]:
    """Every loss at every batch size, and the peer's beside it."""
    taken: dict[str, list[tuple[int, float]]] = {}
    for size in sizes.batches:
        embeddings = nn.functional.normalize(torch.randn(size, DIM, device=on.device)).requires_grad_()
        labels = torch.arange(size, device=on.device) // SAMPLES_PER_CLASS
        floor_s = 3 * 2 * size**2 * DIM / product_rate
        libraries = _libraries(size // SAMPLES_PER_CLASS)
        for name in libraries["ours"]:
            for library, made in libraries.items():
                if name not in made:
                    continue
                what = f"{name}, B = {size}" + (", PML" if library == "PML" else "")
                runs = taken.setdefault(f"{library} {name}", [])
                if _expected_s(runs, size) > RUN_LIMIT_S:
                    yield Row("losses", what, remark=f"would take more than {RUN_LIMIT_S:.0f} s a run")
                    continue
                row = _loss_row(on, what, made[name], embeddings, labels, floor_s)
                if row.seconds is not None:
                    runs.append((size, row.seconds))
                yield row


def _expected_s(runs: list[tuple[int, float]], size: int) -> float:
    """What a run will take by those at smaller sizes, of which some peers' grow with the cube."""
    if not runs:
        return 0.0
    power = 3.0
    if len(runs) > 1:
        (smaller, before), (larger, after) = runs[-2:]
        power = min(max(math.log(after / before) / math.log(larger / smaller), 2.0), 3.0)
    last, seconds = runs[-1]
    return seconds * (size / last) ** power


def _libraries(num_classes: int) -> dict[str, dict[str, Callable[[], nn.Module]]]:
    found = {"ours": ours(num_classes)}
    with suppress(ImportError):
        found["PML"] = peers(num_classes)
    return found


def _loss_row(
    on: Device,
    what: str,
    make: Callable[[], nn.Module],
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    floor_s: float,
) -> Row:
    try:
        loss = make().to(on.device)
        seconds, peak = on.seconds(lambda: loss(embeddings, labels).backward(), repeats=3)
    except torch.OutOfMemoryError:
        return Row("losses", what, remark="out of memory")
    except RuntimeError as error:  # of the peer's, such as an index that needs more than 2^31 elements
        return Row("losses", what, remark=f"failed: {error}"[:120], failed="PML" not in what)
    finally:
        embeddings.grad = None
        if on.is_cuda:
            torch.cuda.empty_cache()
    return Row("losses", what, seconds, floor=seconds / floor_s, peak_bytes=peak)


def training(on: Device, sizes: Sizes, product_rates: dict[str, float]) -> Iterator[Row]:
    """A step of ResNet50 in each precision and memory format, then the loop around the best of them."""
    try:
        Encoder(EncoderConfig(backbone=TimmConfig(name="resnet50", pretrained=False), dim=512), channels=3)
    except ImportError as error:
        yield Row("training", "ResNet50", remark=f"needs timm: {error}")
        return
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bfloat16") if on.is_cuda else ("float32",)
    best = 0.0
    for precision in precisions:
        for channels_last in (False, True):
            what = f"ResNet50, {precision}{', channels-last' if channels_last else ''}"
            try:
                seconds, peak = _resnet50_step(on, sizes, precision, channels_last)
            except torch.OutOfMemoryError:
                yield Row("training", what, remark="out of memory")
                continue
            per_second = sizes.images / seconds
            best = max(best, per_second)
            flop = RESNET50_FLOP * (sizes.pixels / 224) ** 2
            share = per_second * flop / product_rates.get(precision, product_rates["float32"])
            yield Row("training", what, seconds, per_second, "images/s", share=share, peak_bytes=peak)
    per_second = _loop_images_per_second(on, sizes)
    what = "ResNet50, the whole loop, over its step"
    yield Row("training", what, None, per_second, "images/s", share=per_second / best if best else None)


def _resnet50_step(
    on: Device, sizes: Sizes, precision: Precision, channels_last: bool
) -> tuple[float, int | None]:
    config = EncoderConfig(backbone=TimmConfig(name="resnet50", pretrained=False), dim=512)
    encoder = Encoder(config, channels=3).to(on.device)
    images = torch.randn(sizes.images, 3, sizes.pixels, sizes.pixels, device=on.device)
    if channels_last:
        encoder, images = encoder.to(memory_format=torch.channels_last), _channels_last(images)
    labels = torch.arange(sizes.images, device=on.device) // SAMPLES_PER_CLASS
    learner = Learner(encoder, MultiSimilarity(), precision).train()
    optimizer = build_optimizer(experiment("smoke").optimizer, encoder, learner.loss)
    with convolutions_in(precision):
        return on.seconds(lambda: train_step(learner, optimizer, images, labels, clip_norm=None))


def _channels_last(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last)


class InMemory:
    """The same batch again and again, in memory that a GPU can fetch from by itself."""

    validation: ValidationSet | None = None
    sampler: BatchSampler | None = None
    wait_s = 0.0

    def __init__(self, batch: Batch, num_steps: int) -> None:
        self.batch, self.num_steps = batch, num_steps
        self.num_classes = int(batch[1].max()) + 1

    def batches(self, worker: Worker, first_step: int) -> "InMemory":
        return self

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.num_steps):
            yield self.batch

    def ids(self, positions: Any) -> list[str]:
        return [str(position) for position in positions]

    def close(self) -> None:
        pass


def _loop_images_per_second(on: Device, sizes: Sizes) -> float:
    num_steps = 12 if on.is_cuda else 4
    pixels = sizes.pixels
    config = experiment("smoke").overridden(
        [
            'encoder={"backbone":{"kind":"timm","name":"resnet50","pretrained":false},"dim":512}',
            f'preprocessing={{"color":"RGB","resize":{pixels},"crop":{pixels}}}',
            f"sampler.classes_per_batch={sizes.images // SAMPLES_PER_CLASS}",
            f"sampler.samples_per_class={SAMPLES_PER_CLASS}",
            f"training.num_steps={num_steps}",
            f"training.log_every_steps={num_steps // 2}",
            "training.checkpoint_every_steps=1000000",
        ]
    )
    images = torch.randn(sizes.images, 3, pixels, pixels)
    labels = torch.arange(sizes.images) // SAMPLES_PER_CLASS
    if on.is_cuda:
        images, labels = images.pin_memory(), labels.pin_memory()
    speeds: list[float] = []
    hooks = Hooks(report=lambda p: speeds.append(p.images_per_second), save=lambda step, folder: None)
    train_data = InMemory((images, labels, np.arange(len(labels))), num_steps)
    train_on(train_data, config, Worker(device=on.device), hooks, run="benchmark")
    return speeds[-1]


def evaluation(on: Device, sizes: Sizes, product_rate: float) -> Iterator[Row]:
    """Everything that SOP's test split is judged by, from given embeddings."""
    rows, dim = sizes.gallery
    embeddings = nn.functional.normalize(torch.randn(rows, dim, device=on.device))
    labels = torch.arange(rows, device=on.device) // 5
    floor_s = 2 * rows**2 * dim / product_rate
    for name, run in (
        ("retrieval", lambda: retrieval_metrics(embeddings, labels, recall_at=(1, 10, 100))),
        ("verification", lambda: roc_of_all_pairs(embeddings, labels)),
    ):
        seconds, peak = on.seconds(run, repeats=2)
        what = f"{name}, all pairs of {rows:,} x {dim}"
        yield Row("evaluation", what, seconds, floor=seconds / floor_s, peak_bytes=peak)


def measure(on: Device, sizes: Sizes) -> Iterator[Row]:
    product_rates: dict[str, float] = {}
    for row in rates(on, sizes):
        if row.unit == "TFLOP/s" and row.rate is not None:
            product_rates[row.what.split()[1].rstrip(",")] = row.rate * 1e12
        yield row
    float32 = product_rates["float32"]
    for part, found in (
        ("evaluation", evaluation(on, sizes, float32)),
        ("training", training(on, sizes, product_rates)),
        ("losses", losses(on, sizes, float32)),
    ):
        try:
            yield from found
        except Exception as error:  # the other parts are worth having; the exit status tells of this one
            yield Row(part, "", remark=f"failed: {type(error).__name__}: {error}"[:300], failed=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks --gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cpu only shows that it runs")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, help="a JSON file of the same figures")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="nothing begins after so many seconds")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            f"python -m benchmarks --gpu must find a GPU; torch {torch.__version__} finds none. Run it where "
            "there is one; `--device cpu --quick` only shows that it runs.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    began = time.monotonic()
    sizes = QUICK if arguments.quick else FULL
    on = Device(device, sizes.repeats)
    description = on.description()
    print(", ".join(f"{name} {value}" for name, value in description.items()), flush=True)
    print(f"{'':11}{'':44}{'a run':>14}{'rate':>20}{'/ floor':>10}{'share':>10}{'peak':>14}")
    rows: list[Row] = []
    for row in measure(on, sizes):
        rows.append(row)
        print(row.line(), flush=True)
        if time.monotonic() - began > arguments.limit_s:
            print(f"stopped after {arguments.limit_s:.0f} s; the rest was not measured")
            break
    print(f"{time.monotonic() - began:.0f} s in all")
    if arguments.out:
        arguments.out.write_text(json.dumps({**description, "rows": [asdict(row) for row in rows]}, indent=1))
    if any(row.failed for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

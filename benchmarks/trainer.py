"""The training loop beside a bare torch loop, and whether it waits: `python -m benchmarks.trainer`.

1. Images/s of `train_on` over those of a loop of only forward, loss, backward and update, with the same
   encoder, loss and optimiser, and decoded images in memory. They take turns step by step in one process;
   the ratio is the median over steps, of CPU time (which other programs disturb least) and of wall time.
   The same with torch.compile, which the bare loop does without.
2. Forward and backward with channels-last memory and without.
3. With decoding: the share of the time that the loop waits for images, from drawn characters and the real
   data of DML_TEST_DATA where there are any.
"""

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from dml.config import ExperimentConfig, IngestConfig, TorchvisionConfig
from dml.data.batches import Batch
from dml.data.ingest import ingest
from dml.data.sampling import BatchSampler
from dml.presets import experiment
from dml.training.build import build_loss
from dml.training.initial import initial_encoder
from dml.training.loop import Hooks, train_loop, train_on
from dml.training.optimizer import build_optimizer
from dml.training.validation import ValidationSet
from dml.training.worker import Worker

_CLASSES = 100
_WARM = 3
Clocks = tuple[float, float]
"""CPU time and wall time, in seconds."""


class Memory:
    """Batches that lie decoded in memory, the same few in turns; before each of them `between` is done."""

    num_classes = _CLASSES
    validation: ValidationSet | None = None
    sampler: BatchSampler | None = None
    wait_s = 0.0

    def __init__(self, config: ExperimentConfig, between: Callable[[Batch], None]) -> None:
        self.ready, self.between = decoded(config), between
        self.num_steps, self.first_step = config.training.num_steps, 0
        self.took: list[Clocks] = []

    def batches(self, worker: Worker, first_step: int) -> "Memory":
        self.first_step = first_step
        return self

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first_step, self.num_steps):
            batch = self.ready[step % len(self.ready)]
            self.between(batch)
            with timed(self.took):
                yield batch

    def ids(self, positions: Sequence[int]) -> list[str]:
        return [str(position) for position in positions]

    def close(self) -> None:
        pass


class Bare:
    """A step with nothing around it."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.encoder = initial_encoder(config).train().to(memory_format=torch.channels_last)
        self.loss = build_loss(config.loss, dim=config.encoder.dim, num_classes=_CLASSES, seed=config.seed)
        self.optimizer = build_optimizer(config.optimizer, self.encoder, self.loss)
        self.took: list[Clocks] = []

    def step(self, batch: Batch) -> None:
        images, labels, _ = batch
        with timed(self.took):
            self.optimizer.zero_grad(set_to_none=True)
            embeddings = self.encoder(images.contiguous(memory_format=torch.channels_last))
            self.loss(embeddings, labels).backward()
            self.optimizer.step()


@contextmanager
def timed(took: list[Clocks]) -> Iterator[None]:
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    took.append((time.process_time() - cpu, time.perf_counter() - wall))


def decoded(config: ExperimentConfig, count: int = 3) -> list[Batch]:
    """Noise in the shape of the configuration's batches."""
    generator = torch.Generator().manual_seed(0)
    side, sampler = config.preprocessing.crop, config.sampler
    shape = (sampler.batch_size, config.preprocessing.channels, side, side)
    ready: list[Batch] = []
    for _ in range(count):
        classes = torch.randperm(_CLASSES, generator=generator)[: sampler.classes_per_batch]
        labels = classes.repeat_interleave(sampler.samples_per_class)
        ready.append((torch.randn(shape, generator=generator), labels, np.arange(len(labels))))
    return ready


def settings(backbone: str, num_steps: int) -> ExperimentConfig:
    """A preset's batch, loss and optimiser on a backbone, with nothing saved before the end."""
    steps = [f"training.num_steps={num_steps}", "training.checkpoint_every_steps=1000000"]
    if backbone == "conv4":
        return experiment("omniglot").overridden(steps)
    small = experiment("cars196-squeezenet").overridden(steps)
    network = TorchvisionConfig.model_validate({"name": backbone})
    return small.model_copy(update={"encoder": small.encoder.model_copy(update={"backbone": network})})


def compare(backbone: str, num_steps: int, changes: Sequence[str] = ()) -> None:
    config = settings(backbone, num_steps + _WARM).overridden(list(changes))
    bare = Bare(config)
    memory = Memory(config, between=bare.step)
    hooks = Hooks(report=lambda progress: None, save=lambda step, folder: None)
    train_on(memory, config, Worker(), hooks, run="benchmark")
    # Without the last step, which also writes the checkpoint of the end.
    pairs = list(zip(memory.took, bare.took, strict=True))[_WARM:-1]
    cpu, wall = (statistics.median(theirs[clock] / ours[clock] for ours, theirs in pairs) for clock in (0, 1))
    rate = config.sampler.batch_size / statistics.median(ours[1] for ours, _ in pairs)
    print(f"{' '.join([backbone, *changes]):<60}{rate:>10.1f}{cpu:>14.3f}{wall:>14.3f}", flush=True)


def memory_formats(backbone: str, num_steps: int, num_pairs: int) -> None:
    config = settings(backbone, num_steps)
    images, labels, _ = decoded(config)[0]
    loss = build_loss(config.loss, dim=config.encoder.dim, num_classes=_CLASSES, seed=0)
    times: dict[torch.memory_format, list[float]] = {torch.contiguous_format: [], torch.channels_last: []}
    for _ in range(num_pairs):
        for layout, seconds in times.items():
            encoder = initial_encoder(config).train().to(memory_format=layout)
            pixels = images.contiguous(memory_format=layout)
            loss(encoder(pixels), labels).backward()
            began = time.process_time()
            for _ in range(num_steps):
                loss(encoder(pixels), labels).backward()
            seconds.append((time.process_time() - began) / num_steps)
    plain, last = (statistics.median(seconds) for seconds in times.values())
    print(f"{backbone:<60}{plain:>10.2f}{last:>14.2f}{plain / last:>14.2f}", flush=True)


def waiting(preset: str, source: str, layout: str, num_steps: int) -> None:
    with tempfile.TemporaryDirectory() as store:
        wanted = {"name": "benchmark", "source": source, "layout": layout}
        dataset = ingest(IngestConfig.model_validate(wanted), store)
        config = experiment(preset).overridden(
            [f"training.num_steps={num_steps}", "training.checkpoint_every_steps=1000000"]
        )
        hooks = Hooks(report=lambda progress: None, save=lambda step, folder: None)
        outcome = train_loop(config, dataset, Worker(), hooks)
    print(f"{preset:<60}{outcome.images_per_second:>10.1f}{outcome.data_wait:>14.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60, help="of the quickest backbone")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--parts", nargs="*", default=["loop", "compiled", "layout", "waiting"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    print(
        f"commit {commit.stdout.strip()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    if "loop" in arguments.parts:
        print(f"\n{'in memory':<60}{'images/s':>10}{'/ bare, CPU':>14}{'/ bare, wall':>14}")
        compare("conv4", arguments.steps)
        compare("conv4", arguments.steps, ["training.ema_decay=0.999", "optimizer.clip_norm=1"])
        compare("squeezenet1_1", arguments.steps // 2)
        compare("resnet50", arguments.steps // 4, ["sampler.classes_per_batch=8"])
    if "compiled" in arguments.parts:
        print(
            f"\n{'compiled, the bare loop is not':<60}{'images/s':>10}{'/ bare, CPU':>14}{'/ bare, wall':>14}"
        )
        compare("conv4", arguments.steps, ["training.compile=true"])
        compare("squeezenet1_1", arguments.steps // 2, ["training.compile=true"])
        compare("resnet50", arguments.steps // 4, ["sampler.classes_per_batch=8", "training.compile=true"])
    if "layout" in arguments.parts:
        print(f"\n{'CPU s a step':<60}{'contiguous':>10}{'channels-last':>14}{'gain':>14}")
        for backbone in ("squeezenet1_1", "resnet50"):
            memory_formats(backbone, 1, 3)
    if "waiting" in arguments.parts:
        print(f"\n{'decoding':<60}{'images/s':>10}{'waiting':>14}")
        waiting("glyphs", "glyphs:classes=100,per_class=20", "glyphs", 40)
        real = Path(os.environ.get("DML_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
        for preset, name, layout in (
            ("omniglot", "omniglot_background.zip", "omniglot"),
            ("cars196-squeezenet", "cars196_trainhalf_96px.zip", "auto"),
        ):
            if (real / name).exists():
                waiting(preset, str(real / name), layout, 20)
            else:
                print(f"{preset:<60}needs {name} in the folder of DML_TEST_DATA")


if __name__ == "__main__":
    main()

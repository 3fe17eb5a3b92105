"""Our trainer beside a plain loop of pytorch-metric-learning: `python -m benchmarks.equal_budget`.

Same encoder with the same first weights, images, augmentation, batch size, steps, AdamW and schedule; what
differs is the sampler, the loss with its mining, and the loop. Ours is `dml.training.loop.train_loop` with a
preset; theirs is `benchmarks._peer.train_theirs`; both in float32. A short budget, for two cores:
400 steps of 128 on Omniglot (first 20 alphabets against the last 10), 200 steps of 112 on CARS196 at 96
pixels (classes 1-98 against 99-196; its training half alone, so not comparable with published numbers).

Both sides choose one factor of all learning rates from RATES and, after that, among as many SETTINGS of
their loss: by MAP@R on the last quarter of the training classes, after a third of the steps on the other
three quarters, seed 0. Test classes are looked at by the final runs alone, once each.

Images per second: ours decode every image again, theirs are decoded before its clock starts.

On a GPU: `--device cuda --share 4 --threads 16`, four times the steps; Ray and Faiss are not needed.

Every run is kept in `--out` as soon as it is done: a killed benchmark goes on, a finished one only prints.
After a change of the code, name another file and store.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._peer import Choice, train_theirs
from dml import presets
from dml.config import AttributeSplit, ExperimentConfig, IngestConfig, SplitConfig
from dml.data.dataset import read_images, read_rows
from dml.data.ingest import ingest
from dml.metrics.retrieval import retrieval_metrics
from dml.models.encoder import Encoder
from dml.preprocessing import preprocess_batch
from dml.refs import DatasetRef
from dml.training.loop import Hooks, train_loop
from dml.training.worker import Worker

PML = "pytorch-metric-learning"
RATES = (1 / 3, 1.0, 3.0)
TUNING_CLASSES = 0.75  # of the training classes; the others choose
TUNING_STEPS = 1 / 3  # of the final runs' steps

DATA = Path(os.environ.get("DML_TEST_DATA", "../shared/data"))
SOURCES = {"omniglot": "omniglot_background.zip", "cars196": "cars196_trainhalf_96px.zip"}
NUM_STEPS = {"omniglot": 400, "cars196": 200}
EXPERIMENTS: dict[str, Callable[[], ExperimentConfig]] = {
    # The rate of the loss's own parameters as the CARS196 preset has it, instead of 100 times the backbone's.
    "omniglot": lambda: presets.omniglot().overridden(["optimizer.loss_learning_rate=1e-2"]),
    "cars196": lambda: presets.cars196_squeezenet().overridden(
        [f"encoder.backbone.weights={DATA / 'weights/squeezenet1_1_imagenet_features.safetensors'}"]
    ),
}
LOSSES = ("triplet_margin", "multi_similarity", "proxy_anchor", "margin")
# Each side's defaults first. Multi-similarity and Proxy-Anchor have the same, the papers', on both.
SETTINGS: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "ours": {
        "triplet_margin": ({}, {"margin": 0.1}, {"margin": 0.05, "squared": False}),
        "margin": ({}, {"learn_beta": False}, {"per_class": True}),
    },
    "theirs": {
        "triplet_margin": ({}, {"margin": 0.1}, {"margin": 0.2}),
        "margin": ({}, {"learn_beta": True}, {"learn_beta": True, "per_class": True}),
    },
}


@dataclass(frozen=True)
class Protocol:
    """Training data, the split `train` of a dataset, and the rows that are evaluated."""

    dataset: DatasetRef
    positions: list[int]
    labels: Tensor
    num_steps: int
    num_threads: int
    device: torch.device
    config: ExperimentConfig

    @cached_property
    def pixels(self) -> Tensor:
        return preprocess_batch(read_images(self.dataset, self.positions), self.config.preprocessing)

    def evaluate(self, encoder: Encoder) -> dict[str, float]:
        encoder.eval().to(self.device)
        with torch.inference_mode():
            chunks = [
                chunk.to(self.device, memory_format=torch.channels_last) for chunk in self.pixels.split(256)
            ]
            embeddings = torch.cat([encoder(chunk) for chunk in chunks])
        return retrieval_metrics(embeddings.cpu(), self.labels, recall_at=(1,)).as_dict()

    def run(self, side: str, loss: str, choice: Choice, seed: int) -> dict[str, Any]:
        """Train once and evaluate."""
        rate, settings = choice
        optimizer = self.config.optimizer
        head_rate = optimizer.head_learning_rate or optimizer.learning_rate
        assert optimizer.loss_learning_rate is not None, "every experiment here sets it"
        config = self.config.overridden(
            [
                f"seed={seed}",
                f"loss={json.dumps({'kind': loss, **(settings if side == 'ours' else {})})}",
                f"optimizer.learning_rate={rate * optimizer.learning_rate}",
                f"optimizer.head_learning_rate={rate * head_rate}",
                f"optimizer.loss_learning_rate={rate * optimizer.loss_learning_rate}",
                f"optimizer.warmup_steps={self.num_steps // 12}",
                f"training.num_steps={self.num_steps}",
                f"training.threads_per_worker={self.num_threads}",
                "training.precision=float32",
            ]
        )
        torch.set_num_threads(self.num_threads)
        if side == "ours":
            hooks = Hooks(report=lambda progress: None, save=lambda step, folder: None)
            outcome = train_loop(config, self.dataset, Worker(device=self.device), hooks)
            encoder, speed = outcome.encoder, outcome.images_per_second
        else:
            encoder, speed = train_theirs(
                config, self.dataset, loss, settings, num_loaders=self.num_threads, device=self.device
            )
        return {
            **self.evaluate(encoder),
            "images_per_second": speed,
            "commit": commit(),
            "load": os.getloadavg()[0],
        }


def steps_of(name: str, stage: str, share: float) -> int:
    return max(round(share * NUM_STEPS[name] * (TUNING_STEPS if stage == "tuning" else 1)), 2)


@cache
def protocols(
    name: str, store: str, share: float, num_threads: int, device: torch.device
) -> dict[str, Protocol]:
    """`tuning` evaluates on the last of the training classes, `final` on the test classes."""
    whole = _ingest(name, name, store, None)
    labels = {split: set(_labels(whole, split)) for split in ("train", "test")}
    num_tuning = round(TUNING_CLASSES * len(labels["train"]))
    kept = sorted(labels["train"])[:num_tuning]
    others = tuple(sorted(set().union(*labels.values()) - set(kept)))
    part = _ingest(name, f"{name}-tuning", store, AttributeSplit(name="label", test_values=others))
    assert set(_labels(part, "train")) < labels["train"], "tuning must not learn from a test class"

    def protocol(stage: str, dataset: DatasetRef, evaluated: set[str]) -> Protocol:
        rows = read_rows(dataset, split="test", columns=["label", "class_id"])
        kept = np.flatnonzero([label in evaluated for label in rows["label"].to_pylist()])
        positions, classes = (rows[column].to_numpy()[kept] for column in ("position", "class_id"))
        class_ids = torch.from_numpy(classes.astype(np.int64))
        num_steps = steps_of(name, stage, share)
        config = EXPERIMENTS[name]()
        return Protocol(dataset, positions.tolist(), class_ids, num_steps, num_threads, device, config)

    return {
        "tuning": protocol("tuning", part, labels["train"]),
        "final": protocol("final", whole, labels["test"]),
    }


def _ingest(source: str, name: str, store: str, split: SplitConfig | None) -> DatasetRef:
    config = IngestConfig(name=name, source=str(DATA / SOURCES[source]), split=split, num_workers=1)
    return ingest(config, store)


def _labels(dataset: DatasetRef, split: str) -> list[str]:
    return read_rows(dataset, split=split, columns=["label"])["label"].to_pylist()


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


class Results:
    """The results of all runs, in a file replaced atomically; a run without a result is started."""

    def __init__(self, path: Path, store: str, share: float, num_threads: int, device: torch.device) -> None:
        self.path, self.share = path, share
        self.setting = store, share, num_threads, device
        self.runs: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, name: str, stage: str, side: str, loss: str, choice: Choice, seed: int) -> dict[str, Any]:
        num_steps = steps_of(name, stage, self.share)
        key = f"{name} {stage}, {num_steps} steps, {loss}, {side}, {describe(choice)}, seed {seed}"
        if key not in self.runs:
            result = self.runs[key] = protocols(name, *self.setting)[stage].run(side, loss, choice, seed)
            aside = self.path.with_name(f".{self.path.name}.aside")
            aside.write_text(json.dumps(self.runs, indent=1))
            aside.replace(self.path)
            print(f"{key}: Recall@1 {result['recall_at_1']:.4f}, MAP@R {result['map_at_r']:.4f}", flush=True)
        return self.runs[key]

    def tuned(self, name: str, side: str, loss: str) -> Choice:
        """The best factor of the rates, then the best settings at it."""

        def quality(choice: Choice) -> float:
            return float(self.of(name, "tuning", side, loss, choice, seed=0)["map_at_r"])

        settings = SETTINGS[side].get(loss, ({},))
        rate, _ = max(((rate, settings[0]) for rate in RATES), key=quality)
        return max(((rate, setting) for setting in settings), key=quality)


def show(results: Results, name: str, loss: str, seeds: int) -> str:
    """One line of the table: Recall@1, MAP@R in percent and images per second of ours | theirs."""
    sides = ("ours", "theirs")
    tuned = {side: results.tuned(name, side, loss) for side in sides}
    # Side by side, seed by seed, so that what else the machine does falls on both.
    runs = [{s: results.of(name, "final", s, loss, tuned[s], seed) for s in sides} for seed in range(seeds)]

    def column(metric: str) -> str:
        ours, theirs = ([100 * run[side][metric] for run in runs] for side in sides)
        gain = statistics.mean(ours) - statistics.mean(theirs)
        return f"{_mean(ours)} | {_mean(theirs)} {gain:+6.2f}"

    speeds = [statistics.median(run[side]["images_per_second"] for run in runs) for side in sides]
    choices = " | ".join(map(describe, tuned.values()))
    return (
        f"{name:9} {loss:17} {column('recall_at_1')}   {column('map_at_r')}   "
        f"{speeds[0]:5.0f} | {speeds[1]:5.0f}   {choices}"
    )


def describe(choice: Choice) -> str:
    rate, settings = choice
    return " ".join([f"rates x {rate:.2g}", *(f"{name}={value}" for name, value in settings.items())])


def _mean(values: list[float]) -> str:
    deviation = f"{statistics.stdev(values):4.2f}" if len(values) > 1 else "   -"
    return f"{statistics.mean(values):5.2f} +- {deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps; 0.02 tries whether all works")
    parser.add_argument("--threads", type=int, default=2, help="of torch, and their DataLoader's workers")
    parser.add_argument("--out", type=Path, default=Path("equal_budget.json"))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--store", help="where datasets go; a temporary folder otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = arguments.store or temporary
        results = Results(arguments.out, store, arguments.share, arguments.threads, arguments.device)
        cells = [(name, loss) for name in arguments.datasets for loss in arguments.losses]
        lines = [show(results, name, loss, arguments.seeds) for name, loss in cells]
    commits = sorted({run["commit"] for run in results.runs.values()})
    print(
        f"\ncommit {', '.join(commits)}; torch {torch.__version__}, pytorch-metric-learning {version(PML)}; "
        f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads; "
        f"{arguments.seeds} seeds; ours | pytorch-metric-learning, difference\n"
        f"{'':27} {'Recall@1, %':36} {'MAP@R, %':36} {'images/s':15} chosen\n" + "\n".join(lines)
    )


if __name__ == "__main__":
    main()

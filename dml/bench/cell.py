"""One cell of a bench: what it is, its numbers, and where they are kept.

`STORE/bench/cells/FINGERPRINT.json` is written when a cell is finished. Another grid with the same cell reads
it; a cell that was killed resumes from its last checkpoint.
"""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field

from dml import storage
from dml.cluster import call_remote, on_cluster, ray_session
from dml.config import BenchConfig, ExperimentConfig, Part
from dml.data.schema import TEST
from dml.embedding.embed import embed
from dml.errors import InvalidSetting, TrainingFailed
from dml.evaluation.evaluate import evaluate, raw_pixel_baseline
from dml.refs import DatasetRef
from dml.reports import CellReport
from dml.training.loop import run_identity
from dml.training.meter import Progress
from dml.training.ray_trainer import train

RAW_PIXELS = "raw pixels"
EVALUATION_VERSION = 2
"""Part of a cell's fingerprint: raise it when the same embeddings would get other metrics."""
_MAX_IMAGES_IN_PROCESS = 50_000
"""Up to so many images are embedded in the cell's process; Ray would be started once per cell."""


class Row(Part):
    """A line of the table: what differs between seeds is one row."""

    dataset: DatasetRef
    preset: str
    loss: str
    mining: str | None = Field(description="None where the loss takes none")

    @property
    def name(self) -> str:
        """As users type it."""
        return self.loss if self.mining is None else f"{self.loss}/{self.mining}"


class Cell(Part):
    """A row with one seed."""

    row: Row
    experiment: ExperimentConfig
    fingerprint: str

    @property
    def trains(self) -> bool:
        return self.row.loss != RAW_PIXELS

    @property
    def seed(self) -> int:
        return self.experiment.seed

    @property
    def title(self) -> str:
        seed = f", seed {self.seed}" if self.trains else ""
        return f"{self.row.dataset.name} {self.row.name}{seed}"

    def params(self) -> dict[str, Any]:
        """What a tracking server shows of it."""
        row = self.row
        bench = {
            "dataset": str(row.dataset),
            "preset": row.preset,
            "row": row.name,
        }
        return {"bench": bench, **self.experiment.model_dump(mode="json")}


def make_cell(row: Row, experiment: ExperimentConfig) -> Cell:
    """A cell; its fingerprint covers all that its metrics depend on: the run, the data, the evaluation."""
    judged = experiment.evaluation.model_dump(mode="json", exclude={"baselines"})
    if row.loss == RAW_PIXELS:
        made: Any = [RAW_PIXELS, row.dataset.fingerprint, experiment.preprocessing.model_dump(mode="json")]
    else:
        made = run_identity(experiment, row.dataset)
    return Cell(
        row=row, experiment=experiment, fingerprint=storage.digest_of(made, judged, EVALUATION_VERSION)
    )


def find_report(store: str, cell: Cell) -> CellReport | None:
    """The numbers of a cell that is done, else None."""
    uri = _uri(store, cell.fingerprint)
    return CellReport.model_validate(storage.read_json(uri)) if storage.exists(uri) else None


def keep_report(store: str, report: CellReport) -> CellReport:
    """Make a cell done."""
    storage.write_json(_uri(store, report.fingerprint), report.model_dump(mode="json"))
    return report


def refuse_failures(failures: list[str]) -> None:
    """Raise TrainingFailed where cells could not be measured: a table with holes is none."""
    if failures:
        raise TrainingFailed(
            f"Every cell must be trained to its end; {len(failures)} could not be: {' | '.join(failures)} "
            "The others are kept. Give these other settings, as --set LOSS:optimizer.learning_rate=..., or "
            "leave their rows out."
        )


def _uri(store: str, fingerprint: str) -> str:
    return storage.join(store, "bench", "cells", f"{fingerprint[:16]}.json")


def measure_cell(
    store: str,
    cell: Cell,
    on_progress: Callable[[Progress], None] | None = None,
    concurrency: int = 1,
) -> CellReport:
    """Train, embed and evaluate; what a killed run has finished is kept.

    Args:
        store: the store's URI.
        cell: one of `plan`.
        on_progress: as `ray_trainer.train`; picklable where `concurrency` is above 1.
        concurrency: cells trained at a time; with several each has a process, and its share of cores and
            GPUs.
    """
    if concurrency == 1:
        return _measure(store, cell, on_progress)
    threads = max((os.cpu_count() or 1) // concurrency, 1)
    training = cell.experiment.training
    if training.threads_per_worker is None:
        training = training.model_copy(update={"threads_per_worker": threads})
        cell = cell.model_copy(
            update={"experiment": cell.experiment.model_copy(update={"training": training})}
        )
    gpus = 1 if torch.cuda.is_available() and training.use_gpu is not False else 0
    return call_remote(_measure, store, cell, on_progress, num_cpus=1, num_gpus=gpus)


def _measure(store: str, cell: Cell, on_progress: Callable[[Progress], None] | None) -> CellReport:
    dataset, experiment = cell.row.dataset, cell.experiment
    if not cell.trains:
        pixels = raw_pixel_baseline(dataset, experiment.preprocessing, experiment.evaluation)
        return CellReport(fingerprint=cell.fingerprint, evaluation=pixels, hardware=_hardware(experiment))
    trained = train(experiment, dataset, store, on_progress)
    here = 1 if dataset.rows <= _MAX_IMAGES_IN_PROCESS else None
    embeddings = embed(store, trained.package, dataset, split=TEST, num_workers=here)
    images = experiment.training.num_steps * experiment.sampler.batch_size
    # A run killed after its last step has no speed: the process that finished it trained no step.
    speed = trained.images_per_second
    return CellReport(
        fingerprint=cell.fingerprint,
        evaluation=evaluate(embeddings, experiment.evaluation, num_workers=here),
        trained=trained,
        embeddings=embeddings,
        seconds=images / speed if speed > 0 else None,
        hardware=_hardware(experiment),
    )


def _hardware(experiment: ExperimentConfig) -> str:
    if torch.cuda.is_available() and experiment.training.use_gpu is not False:
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores"


@contextmanager
def concurrency_of(config: BenchConfig, cells: list[Cell]) -> Iterator[int]:
    """Number of cells trained at a time; above one, a Ray session is open for the body of the `with`.

    Raises:
        InvalidSetting: several at a time where every one of them wants several workers or a cluster.
    """
    spread = on_cluster() or any(cell.experiment.training.num_workers > 1 for cell in cells)
    if spread and (config.parallel or 1) > 1:
        raise InvalidSetting(
            f"Cells that train on several workers, or on the cluster of RAY_ADDRESS, go one at a time; got "
            f"parallel {config.parallel}. Leave it out, or set training.num_workers=1."
        )
    most = 1 if spread else config.parallel or max(torch.cuda.device_count(), 1)
    count = min(most, max(len(cells), 1))
    if count == 1:
        yield 1
        return
    with ray_session(num_cpus=count):
        yield count

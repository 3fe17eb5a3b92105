"""How a run is going: means of the steps since the last report."""

import time
from dataclasses import dataclass

import numpy as np

from dml.refs import BestStep


@dataclass(frozen=True)
class Progress:
    """What a step reports: `step` steps are done, and the means since the last report."""

    step: int
    loss: float
    images_per_second: float
    """All workers together; time spent on validation is left out."""
    data_wait: float
    """Share of the time spent waiting for images, [0, 1]."""
    validation: BestStep | None = None
    """What validation found since the last report."""
    best: BestStep | None = None
    """The best it has found so far."""

    def metrics(self) -> dict[str, float]:
        """Flat, with one name per number: `loss`, `validation_recall_at_1`, `best_step`, ..."""
        numbers = {
            "loss": self.loss,
            "images_per_second": self.images_per_second,
            "data_wait": self.data_wait,
        }
        if self.validation is not None:
            numbers[f"validation_{self.validation.metric}"] = self.validation.value
        if self.best is not None:
            numbers |= {f"best_{self.best.metric}": self.best.value, "best_step": float(self.best.step)}
        return numbers


class Meter:
    """Means since the last report.

    Args:
        batch_size: images of one step of all workers.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.losses: list[float] = []
        self.since = time.perf_counter()
        self.waited_s = 0.0

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self.since += seconds

    def progress(
        self, step: int, wait_s: float, validation: BestStep | None = None, best: BestStep | None = None
    ) -> Progress:
        """The means up to now; `wait_s` is the total waited since the start of training."""
        now = time.perf_counter()
        elapsed_s = max(now - self.since, 1e-9)
        progress = Progress(
            step=step,
            loss=float(np.mean(self.losses)) if self.losses else float("nan"),
            images_per_second=len(self.losses) * self.batch_size / elapsed_s,
            data_wait=min((wait_s - self.waited_s) / elapsed_s, 1.0),
            validation=validation,
            best=best,
        )
        self.losses, self.since, self.waited_s = [], now, wait_s
        return progress

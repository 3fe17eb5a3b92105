"""Progress of a run: mean loss and speed of the steps since the last report."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from dml.refs import BestStep


@dataclass(frozen=True)
class Progress:
    """A progress report after `step` steps, with means since the previous report."""

    step: int
    loss: float
    images_per_second: float
    """Of all workers together; the time of validation is excluded."""
    data_wait: float
    """Fraction of the time spent waiting for images, [0, 1]."""
    validation: BestStep | None = None
    """Latest validation result since the previous report."""
    best: BestStep | None = None
    """Best validation result so far."""

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
    """Means of the steps since the last report.

    Args:
        batch_size: images per step of all workers together.
        clock: monotonic clock in seconds.
    """

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.batch_size, self.clock = batch_size, clock
        self.losses: list[float] = []
        self.since = clock()
        self.waited_s = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside the context."""
        began = self.clock()
        yield
        self.since += self.clock() - began

    def progress(
        self, step: int, wait_s: float, validation: BestStep | None = None, best: BestStep | None = None
    ) -> Progress:
        """The means since the last report; the next report starts from here.

        Args:
            step: steps done.
            wait_s: seconds waited for images since the start of training.
            validation, best: as in `Progress`.
        """
        now = self.clock()
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

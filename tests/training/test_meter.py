"""Speed and losses since the last report, on a clock that the test turns."""

import pytest

from dml.config import TrainingConfig
from dml.training.loop import Due
from dml.training.meter import Meter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_images_per_second_leave_out_the_time_of_validation():
    clock = Clock()
    meter = Meter(batch_size=10, clock=clock)
    meter.losses += [1.0, 3.0]
    clock.now += 4
    with meter.paused():
        clock.now += 1000
    progress = meter.progress(2, wait_s=1.0)
    assert (progress.loss, progress.images_per_second, progress.data_wait) == (2.0, 5.0, 0.25)


def test_a_report_counts_from_the_one_before():
    clock = Clock()
    meter = Meter(batch_size=10, clock=clock)
    meter.losses += [1.0]
    clock.now += 8
    meter.progress(1, wait_s=2.0)
    meter.losses += [5.0, 7.0]
    clock.now += 2
    progress = meter.progress(3, wait_s=3.0)
    assert (progress.loss, progress.images_per_second, progress.data_wait) == (6.0, 10.0, 0.5)


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (1, (False, False, False)),
        (4, (True, False, False)),
        (5, (False, True, False)),
        (6, (False, False, True)),
        (11, (True, True, True)),  # the last step
    ],
)
def test_what_is_due_after_a_step(done, expected):
    training = TrainingConfig(
        num_steps=11, log_every_steps=5, checkpoint_every_steps=6, validation={"every_steps": 4}
    )
    due = Due.after(done, training)
    assert (due.validation, due.report, due.checkpoint) == expected

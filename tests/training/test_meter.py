"""Speed and losses since the last report, on a clock that the test turns."""

import math

import pytest

from dml.config import TrainingConfig
from dml.refs import BestStep
from dml.training.loop import Due
from dml.training.meter import Meter, Progress


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


def test_a_report_of_half_a_second_or_of_none_is_one_too():
    clock = Clock()
    meter = Meter(batch_size=10, clock=clock)
    meter.losses += [1.0]
    clock.now += 0.5
    assert meter.progress(1, wait_s=0.0).images_per_second == 20.0
    assert meter.progress(1, wait_s=0.0).images_per_second == 0.0, "no step since, and no time"


def test_of_a_wait_that_began_before_the_report_no_more_counts_than_the_whole_time():
    clock = Clock()
    meter = Meter(batch_size=10, clock=clock)
    clock.now += 2
    assert meter.progress(1, wait_s=3.0).data_wait == 1.0


def test_without_a_step_there_is_no_loss():
    assert math.isnan(Meter(batch_size=10).progress(0, wait_s=0.0).loss)


def test_numbers_of_validation_are_named_by_their_metric():
    best, now = (
        BestStep(step=step, metric="r_precision", value=value) for step, value in ((4, 0.5), (8, 0.25))
    )
    assert Progress(8, 1.0, 2.0, 0.5).metrics() == {"loss": 1.0, "images_per_second": 2.0, "data_wait": 0.5}
    assert Progress(8, 1.0, 2.0, 0.5, now, best).metrics() == {
        "loss": 1.0,
        "images_per_second": 2.0,
        "data_wait": 0.5,
        "validation_r_precision": 0.25,
        "best_r_precision": 0.5,
        "best_step": 4.0,
    }


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

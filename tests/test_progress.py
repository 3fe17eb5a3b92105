"""Lines of progress: not too many, with the time that is left."""

import doctest

import pytest

from dml import progress
from dml.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_unit_is_told_then_one_every_five_seconds_and_the_last(clock: Clock):
    lines: list[str] = []
    tell = Progress("embed", "fragments", lines.append, clock=clock)
    for done in range(1, 9):
        clock.now += 2
        tell(done, 8)
    assert lines == [
        "embed: 1 of 8 fragments, 14 s left",
        "embed: 4 of 8 fragments, 8 s left",
        "embed: 7 of 8 fragments, 2 s left",
        "embed: 8 of 8 fragments",
    ]


def test_units_that_an_earlier_run_has_done_do_not_make_this_one_look_fast(clock: Clock):
    lines: list[str] = []
    tell = Progress("embed", "fragments", lines.append, clock=clock)
    clock.now += 10
    tell(301, 400)
    assert lines == ["embed: 301 of 400 fragments, 16 min left"]


def test_a_second_pass_counts_from_its_own_start(clock: Clock):
    lines: list[str] = []
    tell = Progress("judge", "parts", lines.append, clock=clock)
    for done in (1, 2, 1, 2):
        clock.now += 1
        tell(done, 2)
    assert lines == ["judge: 1 of 2 parts, 1 s left", "judge: 2 of 2 parts"] * 2


def test_the_example_is_true():
    assert doctest.testmod(progress).failed == 0

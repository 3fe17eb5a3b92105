"""Lines of progress: not too many, with the time that is left."""

import doctest
import threading

import pytest

from dml import progress
from dml.progress import Progress, Ticker, begin, count


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


def test_a_stage_that_counts_nothing_is_told_of_as_long_as_it_goes_on():
    told = threading.Semaphore(0)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        told.release()

    with Ticker("index", say, every_s=0.01) as ticker:
        ticker.begin("training IVF64,Flat")
        assert told.acquire(timeout=10)
        assert told.acquire(timeout=10)
    assert set(lines) <= {"index, 0 s", "index: training IVF64,Flat, 0 s"}
    assert len(lines) >= 2


def test_a_stage_says_where_it_is_and_how_long_it_takes(clock: Clock):
    with Ticker("ingest", clock=clock) as ticker:
        begin("listing", "entries")
        count(12)
        clock.now += 30
        assert ticker.line() == "ingest: listing, 12 entries so far, 30 s"
        begin("reading", "images", 200)
        clock.now += 10
        assert ticker.line() == "ingest: reading, 0 of 200 images, 10 s"
        ticker.count(50)
        assert ticker.line() == "ingest: reading, 50 of 200 images, 30 s left"
        ticker.count(150)
        assert ticker.line() == "ingest: reading, 200 of 200 images"
    begin("of no stage")
    count()
    assert ticker.line() == "ingest: reading, 200 of 200 images"


def test_the_example_is_true():
    assert doctest.testmod(progress).failed == 0

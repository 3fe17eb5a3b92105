"""Progress lines: how often they appear, and the remaining time."""

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


def test_the_first_and_last_unit_are_reported_and_one_every_five_seconds(clock: Clock):
    lines: list[str] = []
    progress_callback = Progress("embed", "fragments", lines.append, clock=clock)
    for done in range(1, 9):
        clock.now += 2
        progress_callback(done, 8)
    assert lines == [
        "embed: 1 of 8 fragments, 14 s left",
        "embed: 4 of 8 fragments, 8 s left",
        "embed: 7 of 8 fragments, 2 s left",
        "embed: 8 of 8 fragments",
    ]


def test_units_done_by_an_earlier_run_do_not_shorten_the_estimate(clock: Clock):
    lines: list[str] = []
    progress_callback = Progress("embed", "fragments", lines.append, clock=clock)
    clock.now += 10
    progress_callback(301, 400)
    assert lines == ["embed: 301 of 400 fragments, 16 min left"]


def test_a_second_pass_is_timed_from_its_start(clock: Clock):
    lines: list[str] = []
    progress_callback = Progress("judge", "parts", lines.append, clock=clock)
    for done in (1, 2, 1, 2):
        clock.now += 1
        progress_callback(done, 2)
    assert lines == ["judge: 1 of 2 parts, 1 s left", "judge: 2 of 2 parts"] * 2


def test_a_stage_that_counts_nothing_is_reported_while_it_runs():
    line_reported = threading.Semaphore(0)
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        line_reported.release()

    with Ticker("index", report, every_s=0.01) as ticker:
        ticker.begin("training IVF64,Flat")
        assert line_reported.acquire(timeout=120)
        assert line_reported.acquire(timeout=120)
    assert set(lines) <= {"index, 0 s", "index: training IVF64,Flat, 0 s"}
    assert len(lines) >= 2


def test_a_line_shows_the_part_the_count_and_the_time(clock: Clock):
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

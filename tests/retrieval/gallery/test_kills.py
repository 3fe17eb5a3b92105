"""Nothing acknowledged is lost, twice or back when writer and builder are killed, at any moment."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.enrolment import storm


@pytest.mark.slow
@pytest.mark.timeout(900)  # each process that begins again imports all it needs
def test_kills_of_writer_and_builder_while_searching(tmp_path):
    outcome = storm(tmp_path, kills=4, rows=500, dim=16, between_s=0.7)
    assert outcome.acknowledged > 4
    assert outcome.published
    assert outcome.searches
    assert (outcome.lost, outcome.double, outcome.resurrected, outcome.failed_searches) == (0, 0, 0, 0)
    assert sorted(outcome.visible_ms)[len(outcome.visible_ms) // 2] < 10_000, (
        "the log is looked at ten times a second"
    )


@pytest.mark.slow
def test_a_kill_at_any_step_of_build_publication_and_erasure_loses_nothing_and_the_next_finishes(tmp_path):
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "tests.retrieval.gallery.steps", str(tmp_path), "4"],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills at" in done.stdout

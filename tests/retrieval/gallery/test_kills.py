"""Nothing acknowledged is lost, twice or back when writer and builder are killed at random moments."""

import pytest

from benchmarks.enrolment import storm


@pytest.mark.slow
def test_kills_of_writer_and_builder_while_searching(tmp_path):
    outcome = storm(tmp_path, kills=4, rows=500, dim=16, between_s=0.7)
    assert outcome.acknowledged > 4
    assert outcome.published
    assert outcome.searches
    assert (outcome.lost, outcome.double, outcome.resurrected, outcome.failed_searches) == (0, 0, 0, 0)
    assert sorted(outcome.visible_ms)[len(outcome.visible_ms) // 2] < 1000

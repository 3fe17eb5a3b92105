"""`dml plan` on the command line."""

import re
import shlex
from pathlib import Path

import pytest

from dml.reports import SizingReport

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
PUBLISHED = [line.split(" | ") for line in PAGE.read_text().splitlines() if "--no-probe` |" in line]
BILLION = ["plan", "--rows", "1e9", "--dim", "512", "--memory", "64G", "--no-probe"]


def test_a_plan_is_printed_with_why_not_the_others(dml):
    done = dml(
        "plan", "--rows", "250000", "--dim", "128", "--latency-ms", "5", "--memory", "8G", "--no-probe"
    )
    assert done.status == 0, done.err
    assert "250,000 x 128" in done.out
    assert "for reference" in done.out
    assert "HNSW32" in done.out


def test_where_no_index_is_within_the_bounds_the_nearest_is_named(dml):
    done = dml(*BILLION, "--machines", "1", "--recall", "0.99", "--filters", "3", "--json")
    assert done.status == 2
    report = SizingReport.model_validate_json(done.out)
    assert not report.feasible
    assert report.error is not None
    assert report.nearest[0] in report.error


def test_an_amount_that_is_none_ends_with_status_2(dml):
    done = dml("plan", "--rows", "1e9", "--dim", "512", "--memory", "64 bananas", "--no-probe")
    assert done.status == 2
    assert "64 bananas" in done.err


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row[0].strip("| ").split(":")[0])
def test_the_figures_of_the_page_are_those_that_its_command_prints(dml, row):
    said, (_, *words) = row[2], shlex.split(row[3].strip("`| "))
    plan = SizingReport.model_validate_json(dml(*words, "--json").out).chosen
    assert plan is not None
    printed = {
        " GB": plan.memory_bytes * plan.machines / 1e9,
        " ms": plan.latency_ms,
        " core hours": plan.build_hours,
    }
    assert " GB" in said
    for unit, value in printed.items():
        if found := re.search(rf"([\d.]+){unit}", said):
            assert round(value, len(found[1].partition(".")[2])) == float(found[1]), unit

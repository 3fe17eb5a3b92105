"""`dml plan` on the command line."""

from dml.reports import SizingReport

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

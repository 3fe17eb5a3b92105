"""Every loss on every dataset by one protocol, and one table beside the published ones."""

from functools import partial

from prefect import flow

from dml.bench.cell import Cell, concurrency_of, find_report, keep_report, measure_cell, refuse_failures
from dml.bench.grid import plan
from dml.bench.table import write_pages, write_table
from dml.config import BenchConfig
from dml.errors import TrainingFailed
from dml.registry.tracking import start_run
from dml.reports import BenchReport, CellReport
from dml.settings import store_uri
from flows.policy import run_parameters, say, show_table, side_by_side, stage, tag_with_names
from flows.report import show_report


def _run_name() -> str:
    return " ".join(["bench", *run_parameters()["config"].datasets])


@flow(name="bench-flow", flow_run_name=_run_name, on_running=[tag_with_names])
def bench_flow(config: BenchConfig, store: str | None = None) -> BenchReport:
    """Run a grid; a killed one goes on where it was, and a finished one computes nothing.

    Args:
        config: datasets, losses, minings, seeds, and the preset they start from.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    root = store_uri(store)
    cells = stage(plan)(config, root)
    found = {cell.fingerprint: find_report(root, cell) for cell in cells}
    missing = list({cell.fingerprint: cell for cell in cells if found[cell.fingerprint] is None}.values())
    say(f"{len(found)} cells, {len(missing)} of them to be measured")
    with concurrency_of(config, missing) as count:
        failures = side_by_side(partial(_failure_of, root, count), missing, count)
    refuse_failures([failure for failure in failures if failure is not None])
    reports = [find_report(root, cell) for cell in cells]
    done = [report for report in reports if report is not None]
    pages = stage(write_pages)(root, config, cells, done)
    table = stage(write_table)(root, config, cells, done, pages)
    for name, rows in table.tables.items():
        notes = "\n".join(f"- {note}" for note in table.notes[name])
        show_table(f"bench-{name.partition('@')[0]}".replace("_", "-").replace(".", "-"), rows, notes)
    if table.comparisons:
        show_table("bench-paired-tests", table.comparisons)
    for page in pages:
        show_report(page, f"comparison-{page.version}")
    say(f"table: {table.uri}/table.md")
    return table


def _failure_of(store: str, count: int, cell: Cell) -> str | None:
    """Measure a cell; a training that cannot go on is told of at the end, when others have had their turn."""
    try:
        _measure(store, count, cell)
    except TrainingFailed as error:
        say(f"{cell.title}: {error}")
        return f"{cell.title}: {error}"
    return None


def _measure(store: str, count: int, cell: Cell) -> CellReport:
    """One cell, logged before it counts as done, so that a kill between the two loses neither."""
    say(f"{cell.title}: begins")
    run = stage(start_run)(
        store,
        experiment=f"bench-{cell.row.dataset.name}",
        identity=cell.fingerprint[:16],
        params=cell.params(),
        name=cell.title,
    )
    with run.recording():
        report = stage(measure_cell, retryable=True)(store, cell, run, count)
        run.log_evaluation(report.evaluation)
    say(f"{cell.title}: recall_at_1 {report.metrics['recall_at_1']:.4f}")
    return stage(keep_report)(store, report)

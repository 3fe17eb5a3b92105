"""Flow of a bench: all losses on all datasets by one protocol, and a table of the results."""

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
from flows.policy import map_concurrently, run_parameters, say, show_table, stage, tag_with_names
from flows.report import show_report


def _run_name() -> str:
    return " ".join(["bench", *run_parameters()["config"].datasets])


@flow(name="bench-flow", flow_run_name=_run_name, on_running=[tag_with_names])
def bench_flow(config: BenchConfig, store: str | None = None) -> BenchReport:
    """Run a grid; a killed run continues where it stopped, and a finished one computes nothing.

    Args:
        config: datasets, losses, minings, seeds, and presets.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    root = store_uri(store)
    cells = stage(plan)(config, root)
    reports_by_cell = {cell.fingerprint: find_report(root, cell) for cell in cells}
    missing = list(
        {cell.fingerprint: cell for cell in cells if reports_by_cell[cell.fingerprint] is None}.values()
    )
    say(f"{len(reports_by_cell)} cells, {len(missing)} of them to be measured")
    with concurrency_of(config, missing) as count:
        failures = map_concurrently(partial(_try_measure, root, count), missing, count)
    refuse_failures([failure for failure in failures if failure is not None])
    reports = [find_report(root, cell) for cell in cells]
    finished = [report for report in reports if report is not None]
    pages = stage(write_pages)(root, config, cells, finished)
    table = stage(write_table)(root, config, cells, finished, pages)
    for name, rows in table.tables.items():
        notes = "\n".join(f"- {note}" for note in table.notes[name])
        show_table(f"bench-{name.partition('@')[0]}".replace("_", "-").replace(".", "-"), rows, notes)
    if table.comparisons:
        show_table("bench-paired-tests", table.comparisons)
    for page in pages:
        show_report(page, f"comparison-{page.version}")
    say(f"table: {table.uri}/table.md")
    return table


def _try_measure(store: str, count: int, cell: Cell) -> str | None:
    """Measure a cell; returns the error of a failed training, to be raised after the other cells."""
    try:
        _measure(store, count, cell)
    except TrainingFailed as error:
        say(f"{cell.title}: {error}")
        return f"{cell.title}: {error}"
    return None


def _measure(store: str, count: int, cell: Cell) -> CellReport:
    """Measure and log a cell. Its report is stored last, so that a kill before that repeats the logging."""
    say(f"{cell.title}: starts")
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

"""A grid is killed and goes on, a finished one computes nothing, and its table says what evaluations say."""

import csv
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dml import storage
from dml.bench.cell import find_report
from dml.bench.grid import plan
from dml.bench.table import command_of
from dml.cli import main
from dml.config import BenchConfig, IngestConfig
from dml.data.dataset import find_dataset
from dml.errors import TrainingFailed
from dml.evaluation.evaluate import raw_pixel_baseline
from dml.registry.tracking import connect
from dml.reports import BenchReport
from dml.settings import tracking_uri
from flows.bench import bench_flow
from flows.evaluate import evaluate_package
from flows.ingest import ingest_flow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GRID = BenchConfig(
    datasets=("shop",),
    losses=("margin", "multi_similarity"),
    seeds=2,
    settings=("training.num_steps=3", "training.checkpoint_every_steps=1", "training.threads_per_worker=1"),
    compare=(("multi_similarity", "margin"),),
)
NUM_CELLS = 1 + 2 * 3
NUM_KEPT = 4


def written_at(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A store in which the command line's grid was killed after its fourth cell, and what was there then."""
    store = tmp_path_factory.mktemp("bench") / "store"
    ingest_flow.fn(
        IngestConfig(name="shop", source="glyphs:classes=20,per_class=4", num_workers=1), str(store)
    )
    _, *words = shlex.split(command_of(GRID))
    process = subprocess.Popen(
        [sys.executable, "-m", "dml.cli", *words, "--store", str(store)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    cells = store / "bench" / "cells"
    deadline = time.monotonic() + 500
    while len(list(cells.glob("*.json"))) < NUM_KEPT:
        assert process.poll() is None, "it must be killed before it ends"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    return store, written_at(cells) | written_at(store / "packages")


@pytest.fixture(scope="module")
def finished(killed) -> BenchReport:
    return bench_flow.fn(GRID, str(killed[0]))


def test_a_killed_grid_continues_where_it_was(killed, finished):
    store, before = killed
    after = written_at(store / "bench" / "cells") | written_at(store / "packages")
    assert {path: after[path] for path in before} == before, "what was done is not done again"
    assert [find_report(str(store), cell) for cell in plan(GRID, str(store))] == finished.cells
    assert len(finished.cells) == NUM_CELLS
    assert len(before) > NUM_KEPT


def test_a_finished_grid_computes_nothing(killed, finished):
    store, _ = killed
    before = written_at(store)
    assert bench_flow.fn(GRID, str(store)) == finished
    assert written_at(store) == before


def test_the_command_line_gives_the_same_table(killed, finished, monkeypatch, capsys):
    _, *words = shlex.split(command_of(GRID))
    monkeypatch.setattr(sys, "argv", ["dml", *words, "--store", str(killed[0]), "--json"])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert BenchReport.model_validate_json(capsys.readouterr().out) == finished


def test_the_command_line_refuses_what_the_grid_does(monkeypatch, capsys, tmp_path):
    words = "dml bench --datasets a b --losses margin --presets smoke --compare margin --json --store"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(tmp_path)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    assert "--compare takes two rows" in capsys.readouterr().err


def test_every_cell_of_the_grid_is_one_finished_run_in_the_tracking_server(killed, finished):
    store, _ = killed
    client = connect(tracking_uri(str(store)))
    runs = client.search_runs([client.get_experiment_by_name("bench-shop").experiment_id])
    by_name = {run.info.run_name: run for run in runs if run.info.status == "FINISHED"}
    for cell, report in zip(plan(GRID, str(store)), finished.cells, strict=True):
        assert {k: by_name[cell.title].data.metrics[k] for k in report.metrics} == report.metrics
    assert len({run.info.run_name for run in runs}) == len(runs)


def test_the_tables_numbers_are_those_of_the_evaluation_reports(killed, finished):
    store = str(killed[0])
    dataset, cells = find_dataset(store, "shop"), plan(GRID, store)
    records = list(csv.DictReader(storage.read_bytes(f"{finished.uri}/table.csv").decode().splitlines()))
    page = storage.read_bytes(f"{finished.uri}/table.md").decode()
    assert [(r["loss"], r["mining"]) for r in records] == [
        ("raw pixels", ""),
        ("softmax", ""),
        ("margin", "distance_weighted"),
        ("multi_similarity", ""),
    ]
    for record in records:
        own = [
            (cell, report)
            for cell, report in zip(cells, finished.cells, strict=True)
            if cell.row.loss == record["loss"]
        ]
        config = own[0][0].experiment.evaluation.model_copy(update={"baselines": False})
        if record["loss"] == "raw pixels":
            judged = [raw_pixel_baseline(dataset, own[0][0].experiment.preprocessing, config).values]
        else:
            judged = [evaluate_package(store, r.trained.package, dataset, config).metrics for _, r in own]
        for metric in config.metrics:
            values = [metrics[metric] for metrics in judged]
            assert float(record[f"{metric}_mean"]) == statistics.mean(values)
            deviation = repr(statistics.stdev(values)) if len(values) > 1 else ""
            assert record[f"{metric}_deviation"] == deviation
        shown = f"{100 * statistics.mean(m['recall_at_1'] for m in judged):.2f}"
        assert f"| {record['loss']} | {record['mining']} |" in page
        assert shown in page
    assert page.startswith(f"`{command_of(GRID)}`")


def test_a_training_that_fails_keeps_no_other_cell_from_its_turn(killed):
    store = str(killed[0])
    broken = GRID.model_copy(
        update={
            "losses": ("margin", "n_pair"),
            "seeds": 1,
            "settings": (*GRID.settings, "margin:optimizer.learning_rate=1e30"),
            "compare": (),
        }
    )
    with pytest.raises(TrainingFailed, match=r"1 could not be: shop margin/.*, seed 0: .*others are kept"):
        bench_flow.fn(broken, store)
    actual = {cell.row.loss: find_report(store, cell) for cell in plan(broken, store)}
    assert [loss for loss, report in actual.items() if report is None] == ["margin"]


def test_two_rows_are_compared_on_the_same_queries_seed_by_seed(finished):
    margin, margin_1, ms, ms_1 = finished.cells[-4:]
    for tested, ours, theirs in zip(finished.comparisons, (ms, ms_1), (margin, margin_1), strict=True):
        gain = 100 * (ours.metrics["recall_at_1"] - theirs.metrics["recall_at_1"])
        assert float(tested["gain in R@1"]) == pytest.approx(gain, abs=0.006)
        assert (tested["queries"], tested["classes"]) == ("40", "10")
    assert len(finished.comparisons) == 2


def test_every_comparison_has_a_page_that_the_table_links_to(finished):
    table = Path(finished.uri, "table.md").read_text()
    links = re.findall(r"\| \[\w+\]\((\S+?/index\.html)\) \|", table)
    assert [Path(finished.uri, link).resolve() for link in links] == [
        Path(tested["page"]).resolve() for tested in finished.comparisons
    ]
    for tested in finished.comparisons:
        title = f"Is {tested['row']} better than {tested['against']}, and where?"
        assert title in Path(tested["page"]).read_text()
    assert len(set(links)) == 2


def test_any_two_cells_of_a_finished_grid_are_compared_without_another_training(killed, finished):
    store, _ = killed
    before = (
        written_at(store / "bench" / "cells") | written_at(store / "packages") | written_at(store / "runs")
    )
    pairs = (("margin@0", "margin@1"), ("softmax@0", "margin@0"))
    report = bench_flow.fn(GRID.model_copy(update={"compare": pairs}), str(store))
    after = (
        written_at(store / "bench" / "cells") | written_at(store / "packages") | written_at(store / "runs")
    )
    assert after == before
    assert report.cells == finished.cells
    named = [(tested["row"], tested["against"]) for tested in report.comparisons]
    name = "margin/distance_weighted"
    assert named == [(f"{name}@0", f"{name}@1"), ("softmax@0", f"{name}@0")]
    assert all(Path(tested["page"]).is_file() for tested in report.comparisons)


@pytest.mark.ray
def test_cells_side_by_side_give_the_same_numbers(killed, finished, tmp_path):
    other = str(tmp_path / "store")
    source = IngestConfig(name="shop", source="glyphs:classes=20,per_class=4", num_workers=1)
    ingest_flow.fn(source, other)
    few = GRID.model_copy(update={"losses": ("margin",), "compare": (), "seeds": 1, "parallel": 2})
    again = bench_flow.fn(few, other)
    evaluated = {
        cell.title: report.evaluation
        for cell, report in zip(plan(GRID, str(killed[0])), finished.cells, strict=True)
    }
    titles = [cell.title for cell in plan(few, other)]
    assert len(titles) == 3
    assert [cell.evaluation for cell in again.cells] == [evaluated[title] for title in titles]

"""A finished grid as one table: Markdown to read, CSV to compute with; `STORE/bench/tables/VERSION/`."""

import shlex
from collections.abc import Iterator, Sequence

from dml import storage
from dml.bench.cell import Cell
from dml.bench.grid import cells_named
from dml.bench.layout import Line, csv_of, heading, lines_of, markdown, notes_on, shown_line
from dml.config import BenchConfig, GateConfig
from dml.refs import BenchReport, CellReport
from dml.retrieval.evaluate import compare

LAYOUT_VERSION = 1
_REPORT, _MARKDOWN, _CSV = "bench.json", "table.md", "table.csv"


def write_table(
    store: str, config: BenchConfig, cells: Sequence[Cell], reports: Sequence[CellReport]
) -> BenchReport:
    """Lay out a finished grid; the same grid's table is made once.

    Args:
        store: the store's URI.
        config: the bench.
        cells: of `plan`.
        reports: theirs, in the same order.
    """
    command = command_of(config)
    fingerprint = storage.digest_of([cell.fingerprint for cell in cells], command, LAYOUT_VERSION)
    uri = storage.join(store, "bench", "tables", fingerprint[:12])
    if storage.is_complete(uri):
        return BenchReport.model_validate(storage.read_json(storage.join(uri, _REPORT)))
    datasets: dict[str, list[Line]] = {}
    for line in lines_of(cells, reports):
        version = f"{line.row.dataset.name}@{line.row.dataset.version}"
        datasets.setdefault(version, []).append(line)
    report = BenchReport(
        uri=uri,
        fingerprint=fingerprint,
        cells=list(reports),
        tables={name: [shown_line(line, lines) for line in lines] for name, lines in datasets.items()},
        notes={name: notes_on(lines) for name, lines in datasets.items()},
        comparisons=_comparisons(config, cells, reports),
    )
    staged = storage.staging(uri)
    # Not write_json, which sorts keys: the order of a row's columns is the table's.
    storage.write_bytes(storage.join(staged, _REPORT), report.model_dump_json(indent=1).encode())
    page = markdown(command, report, datasets)
    storage.write_bytes(storage.join(staged, _MARKDOWN), page.encode())
    lines = [line for each in datasets.values() for line in each]
    storage.write_bytes(storage.join(staged, _CSV), csv_of(lines).encode())
    storage.publish(staged, uri, {"command": command})
    return report


def command_of(config: BenchConfig) -> str:
    """What to type for the same grid."""
    options: dict[str, Sequence[str]] = {
        "--datasets": config.datasets,
        "--preset": config.presets,
        "--losses": config.losses,
        "--mining": config.minings,
        "--set": [shlex.quote(text) for text in config.settings],
    }
    if config.reproduce is not None:
        options = {"--reproduce": [config.reproduce], **options, "--preset": (), "--losses": ()}
    parts = ["dml bench", *(f"{name} {' '.join(values)}" for name, values in options.items() if values)]
    parts.append(f"--seeds {config.seeds}")
    if config.reproduce is None and not config.baselines:
        parts.append("--no-baselines")
    parts += [f"--compare {one} {other}" for one, other in config.compare]
    if config.compare and config.compare_metric != "recall_at_1":
        parts.append(f"--compare-metric {config.compare_metric}")
    return " ".join(parts)


def _comparisons(
    config: BenchConfig, cells: Sequence[Cell], reports: Sequence[CellReport]
) -> list[dict[str, str]]:
    """The paired test of each pair of rows asked for, dataset by dataset and seed by seed."""
    found = []
    by_cell = {cell.fingerprint: report for cell, report in zip(cells, reports, strict=True)}
    gate = GateConfig(metric=config.compare_metric)
    for one, other in config.compare:
        ours, theirs = cells_named(list(cells), one), cells_named(list(cells), other)
        for first, second in _paired(ours, theirs):
            own, others = (by_cell[cell.fingerprint].embeddings for cell in (first, second))
            assert own is not None, "only trained cells are named"
            assert others is not None, "only trained cells are named"
            tested = compare(own, others, first.experiment.evaluation, gate)
            found.append(
                {
                    "dataset": first.row.dataset.name,
                    "row": f"{first.row.name}@{first.seed}",
                    "against": f"{second.row.name}@{second.seed}",
                    f"gain in {heading(tested.metric)}": f"{100 * tested.gain:+.2f}",
                    "95 %": f"[{100 * tested.low:+.2f}, {100 * tested.high:+.2f}]",
                    "p": f"{tested.p_value:.4f}",
                    "queries": str(tested.num_queries),
                    "classes": str(tested.num_classes),
                }
            )
    return found


def _paired(ours: Sequence[Cell], theirs: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """On the same dataset; of equal seeds where a side has several, else its only one."""
    for first in ours:
        others = [cell for cell in theirs if cell.row.dataset == first.row.dataset]
        same = [cell for cell in others if cell.seed == first.seed]
        alone = len(others) == 1 or len([c for c in ours if c.row.dataset == first.row.dataset]) == 1
        for second in same or (others if alone else []):
            yield first, second

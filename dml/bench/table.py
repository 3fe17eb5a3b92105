"""A finished grid as one table, `STORE/bench/tables/VERSION/`: Markdown to read, CSV to compute with.

Before it come the pages of the pairs of cells that it compares, which it names.
"""

import shlex
from collections.abc import Sequence

from dml import storage
from dml.bench.cell import Cell
from dml.bench.layout import Line, csv_of, heading, lines_of, markdown, notes_on, shown_line
from dml.bench.pairs import Pair, pairs_of
from dml.config import BenchConfig, ReportConfig
from dml.refs import ReportRef
from dml.report.comparison import Candidate, read_comparisons, write_comparison
from dml.reports import BenchReport, CellReport

LAYOUT_VERSION = 1
_REPORT, _MARKDOWN, _CSV = "bench.json", "table.md", "table.csv"


def write_pages(
    store: str, config: BenchConfig, cells: Sequence[Cell], reports: Sequence[CellReport]
) -> list[ReportRef]:
    """The page of each pair of cells that are compared, in the order of `pairs_of`; each is made once.

    Args:
        store: the store's URI.
        config: the bench.
        cells: of `plan`.
        reports: theirs, in the same order.

    Raises:
        IncompatibleArtifact: two cells that train alike, so that their embeddings are the same.
    """
    made = {cell.fingerprint: report.embeddings for cell, report in zip(cells, reports, strict=True)}
    pages = []
    for pair in pairs_of(config, cells):
        candidates = []
        for name, cell in zip(pair.names, (pair.first, pair.second), strict=True):
            embeddings = made[cell.fingerprint]
            assert embeddings is not None, "only trained cells are named"
            candidates.append(Candidate(name, embeddings))
        settings = ReportConfig(evaluation=pair.first.experiment.evaluation)
        pages.append(write_comparison(store, candidates[0], candidates[1], settings))
    return pages


def write_table(
    store: str,
    config: BenchConfig,
    cells: Sequence[Cell],
    reports: Sequence[CellReport],
    pages: Sequence[ReportRef],
) -> BenchReport:
    """Lay out a finished grid; the same grid's table is made once.

    Args:
        store: the store's URI.
        config: the bench.
        cells: of `plan`.
        reports: theirs, in the same order.
        pages: of `write_pages`.
    """
    command = command_of(config)
    parents = [cell.fingerprint for cell in cells] + [page.fingerprint for page in pages]
    fingerprint = storage.digest_of(parents, command, LAYOUT_VERSION)
    uri = storage.join(store, "bench", "tables", fingerprint[:12])
    if storage.is_complete(uri):
        return BenchReport.model_validate(storage.read_json(storage.join(uri, _REPORT)))
    datasets: dict[str, list[Line]] = {}
    for line in lines_of(cells, reports):
        version = str(line.row.dataset)
        datasets.setdefault(version, []).append(line)
    report = BenchReport(
        uri=uri,
        fingerprint=fingerprint,
        cells=list(reports),
        tables={name: [shown_line(line, lines) for line in lines] for name, lines in datasets.items()},
        notes={name: notes_on(lines) for name, lines in datasets.items()},
        comparisons=_comparisons(config, pairs_of(config, cells), pages),
    )
    page = markdown(command, report, datasets)
    lines = [line for each in datasets.values() for line in each]
    with storage.staged(uri) as staged:
        storage.write_json(storage.join(staged, _REPORT), report.model_dump(mode="json"))
        storage.write_bytes(storage.join(staged, _MARKDOWN), page.encode())
        storage.write_bytes(storage.join(staged, _CSV), csv_of(lines).encode())
        storage.publish(staged, uri, {"command": command})
    return report


def command_of(config: BenchConfig) -> str:
    """What to type for the same grid."""
    options: dict[str, Sequence[str]] = {
        "--datasets": config.datasets,
        "--presets": config.presets,
        "--losses": config.losses,
        "--minings": config.minings,
        "--set": [shlex.quote(text) for text in config.settings],
    }
    if config.reproduce is not None:
        options = {"--reproduce": [config.reproduce], **options, "--presets": (), "--losses": ()}
    parts = ["dml bench", *(f"{name} {' '.join(values)}" for name, values in options.items() if values)]
    parts.append(f"--seeds {config.seeds}")
    if config.reproduce is None and not config.baselines:
        parts.append("--no-baselines")
    parts += [f"--compare {one} {other}" for one, other in config.compare]
    if config.compare and config.compare_metric != "recall_at_1":
        parts.append(f"--compare-metric {config.compare_metric}")
    return " ".join(parts)


def _comparisons(
    config: BenchConfig, pairs: Sequence[Pair], pages: Sequence[ReportRef]
) -> list[dict[str, str]]:
    """The paired test of each pair of cells, as its page has it."""
    rows = []
    for pair, page in zip(pairs, pages, strict=True):
        tests = {comparison.tested.metric: comparison.tested for comparison in read_comparisons(page)}
        tested, (row, against) = tests[config.compare_metric], pair.names
        rows.append(
            {
                "dataset": pair.first.row.dataset.name,
                "row": row,
                "against": against,
                f"gain in {heading(tested.metric)}": f"{100 * tested.gain:+.2f}",
                "95 %": f"[{100 * tested.low:+.2f}, {100 * tested.high:+.2f}]",
                "p": f"{tested.p_value:.4f}",
                "queries": str(tested.num_queries),
                "classes": str(tested.num_classes),
                "page": page.page,
            }
        )
    return rows

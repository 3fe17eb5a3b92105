"""The lines of a bench's table, and how people and programs read them: Markdown in percent, CSV in shares."""

import csv
import io
import posixpath
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dml.bench.cell import RAW_PIXELS, Cell, Row
from dml.bench.published import Published, published_rows, why_not
from dml.reports import BenchReport, CellReport

_HEADINGS = {
    "r_precision": "RP",
    "map_at_r": "MAP@R",
    "map": "MAP",
    "nmi": "NMI",
    "ami": "AMI",
    "pairwise_f1": "F1",
}
_FEW_REASONS = 4


@dataclass(frozen=True)
class Line:
    """A row with its seeds' reports, and what was published of it."""

    row: Row
    cells: list[Cell]
    reports: list[CellReport]
    published: list[tuple[Published, list[str]]]
    """With the reasons for which it is not comparable."""

    @property
    def comparable(self) -> Published | None:
        return next((published for published, reasons in self.published if not reasons), None)

    def values(self, metric: str) -> list[float]:
        return [report.metrics[metric] for report in self.reports]

    def seconds(self) -> list[float]:
        return [report.seconds for report in self.reports if report.seconds is not None]

    def speeds(self) -> list[float]:
        speeds = [report.trained.images_per_second for report in self.reports if report.trained is not None]
        return [speed for speed in speeds if speed > 0]


def lines_of(cells: Sequence[Cell], reports: Sequence[CellReport]) -> Iterator[Line]:
    pairs = zip(cells, reports, strict=True)
    for row, members in groupby(pairs, key=lambda pair: pair[0].row):  # a row's seeds follow each other
        row_cells, row_reports = zip(*members, strict=True)
        rows = published_rows(row.dataset, row.loss, row.mining)
        published = [(each, why_not(each, row.dataset, row_cells[0].experiment)) for each in rows]
        yield Line(row, list(row_cells), list(row_reports), published)


def shown_line(line: Line, lines: Sequence[Line]) -> dict[str, str]:
    """One of a dataset's lines as people read it, in percent; the preset is said where they have several."""
    row, beside = line.row, line.comparable
    shown = {"loss": row.loss, "mining": row.mining or ""}
    if len(_presets(lines)) > 1:
        shown["preset"] = row.preset
    shown["seeds"] = "" if row.loss == RAW_PIXELS else str(len(line.cells))
    for metric in _metrics(lines):
        shown[heading(metric)] = _mean(line.values(metric), 100, 2)
        if beside is not None and metric in beside.metrics:
            shown[f"{heading(metric)} published"] = f"{100 * beside.metrics[metric]:.1f}"
    return {**shown, "seconds": _mean(line.seconds(), 1, 1), "images/s": _mean(line.speeds(), 1, 0)}


def heading(metric: str) -> str:
    """A metric as the field's tables name it."""
    for prefix, short in (("recall_at_", "R@"), ("precision_at_", "P@")):
        if metric.startswith(prefix):
            return short + metric.removeprefix(prefix)
    if "_way_" in metric:
        return metric.replace("_way_", "-way ").replace("_shot_", "-shot ").replace("class_mean", "mean")
    return _HEADINGS.get(metric, metric)


def notes_on(lines: Sequence[Line]) -> list[str]:
    """Every published row of these lines: from where, how its epoch was chosen, and why not beside ours."""
    notes = []
    for line in lines:
        for published, reasons in line.published:
            numbers = ", ".join(f"{heading(name)} {100 * v:.1f}" for name, v in published.metrics.items())
            note = f"{line.row.name}: {numbers} ({published.source}; {published.network})"
            if not reasons:
                notes.append(f"{note}: beside ours. There {published.chosen}.")
                continue
            more = len(reasons) - _FEW_REASONS
            said = "; ".join(reasons[:_FEW_REASONS]) + (f"; and {more} settings more" if more > 0 else "")
            notes.append(f"{note}: not comparable. {said}.")
    return notes


def markdown(command: str, report: BenchReport, datasets: Mapping[str, Sequence[Line]]) -> str:
    """The whole page."""
    text = [f"`{command}`", ""]
    for name, lines in datasets.items():
        splits = lines[0].row.dataset.splits
        sizes = ", ".join(f"{split} {s.rows} images of {s.classes} classes" for split, s in splits.items())
        hardware = ", ".join(sorted({cell.hardware for line in lines for cell in line.reports}))
        text += [
            f"## {name}",
            "",
            f"{sizes}. In percent, mean ± deviation over seeds. Ran on {hardware}.",
            "",
        ]
        if len(_presets(lines)) == 1:
            text[-2] += f" Preset {_presets(lines)[0]}."
        text += [_table(report.tables[name]), ""]
        if report.notes[name]:
            text += ["Published:", "", *(f"- {note}" for note in report.notes[name]), ""]
    if report.comparisons:
        text += ["## Paired tests", "", "Same queries; whole classes resampled and sign-flipped.", ""]
        rows = [{**row, "page": _link(report, row["page"])} for row in report.comparisons]
        text += [_table(rows), ""]
    return "\n".join(text)


def csv_of(lines: Sequence[Line]) -> str:
    """One line per row of every dataset, numbers as shares of one and unrounded."""
    records = [_record(line) for line in lines]
    written = io.StringIO()
    writer = csv.DictWriter(written, columns_of(records), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return written.getvalue()


def columns_of(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns of all rows in their order: those that only some have stay beside their neighbours."""
    columns: list[str] = []
    for row in rows:
        index = 0
        for column in row:
            if column in columns:
                index = columns.index(column) + 1
            else:
                columns.insert(index, column)
                index += 1
    return columns


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table."""
    columns = columns_of(rows)
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row.get(column, "") for column in columns) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _link(report: BenchReport, page: str) -> str:
    """To a page of the same store, from the table's folder."""
    return f"[{posixpath.basename(posixpath.dirname(page))}]({posixpath.relpath(page, report.uri)})"


def _record(line: Line) -> dict[str, str]:
    row = line.row
    record = {
        "dataset": row.dataset.name,
        "version": row.dataset.version,
        "preset": row.preset,
        "loss": row.loss,
        "mining": row.mining or "",
        "seeds": str(len(line.reports)),
    }
    columns = {metric: line.values(metric) for metric in _metrics([line])}
    for name, values in {**columns, "seconds": line.seconds(), "images_per_second": line.speeds()}.items():
        record[f"{name}_mean"] = repr(statistics.mean(values)) if values else ""
        record[f"{name}_deviation"] = repr(statistics.stdev(values)) if len(values) > 1 else ""
        if line.comparable is not None and name in line.comparable.metrics:
            record[f"{name}_published"] = repr(line.comparable.metrics[name])
    if line.comparable is not None:
        record["published_source"] = line.comparable.source
    reasons = [f"{each.source}: {'; '.join(why)}" for each, why in line.published if why]
    return record | ({"not_comparable": " | ".join(reasons)} if reasons else {})


def _metrics(lines: Sequence[Line]) -> list[str]:
    """The metrics of a dataset's rows, in the order of the evaluation's configuration."""
    return lines[0].cells[0].experiment.evaluation.metrics


def _presets(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.row.preset for line in lines))


def _mean(values: Sequence[float], factor: float, digits: int) -> str:
    if not values:
        return ""
    mean = f"{factor * statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {factor * statistics.stdev(values):.{digits}f}"

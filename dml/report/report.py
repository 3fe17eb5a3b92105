"""The report page of a model on a split of a dataset: what it learned, and where it fails."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from dml import storage
from dml.config import BootstrapConfig, ReportConfig
from dml.evaluation.evaluate import evaluate, raw_pixel_baseline
from dml.models.package import read_preprocessing
from dml.refs import EmbeddingsRef, ModelRef, ReportRef, require_package
from dml.registry.history import attach_pictures, curves_of_run, training_curves
from dml.registry.tracking import Run
from dml.report import charts
from dml.report.circle_histogram import CircleHistogram, draw_circle_histograms
from dml.report.embedded_split import EmbeddedSplit
from dml.report.findings import Suspect, confident_mistakes, worst_queries
from dml.report.page import Page, Picture, Section, csv_of, publish_page
from dml.report.projection import map_of
from dml.report.sections import (
    VERIFICATION,
    GalleryText,
    every_pair,
    gallery_section,
    no_pairs,
    threshold_row,
)
from dml.reports import RAW_PIXELS, Evaluation, EvaluationReport

_CODE_VERSION = 5  # part of a report's identity: raise it when the same inputs would give another page
SUSPECTS, THRESHOLDS = "suspects.csv", "thresholds.csv"


def write_report(
    store: str,
    model: ModelRef,
    embeddings: EmbeddingsRef,
    config: ReportConfig,
    before: EmbeddingsRef | None = None,
) -> ReportRef:
    """Publish the report page of a model's embeddings of a split.

    Args:
        store: the store's URI; the report is in `reports/` there.
        model: the registered version whose package made the embeddings.
        embeddings: of the dataset to look at.
        config: which split, and how much of everything.
        before: embeddings by the encoder before its training, as a baseline; None: without.

    Returns:
        The published report, the same one for the same inputs, written once.

    Raises:
        InvalidData: the split has no rows, or no queries or no gallery.
        InvalidSetting: an attribute that the dataset does not have.
    """
    curves = training_curves(store, model)
    settings = config.model_dump(mode="json")
    fingerprint = storage.digest_of(
        "report",
        _CODE_VERSION,
        str(model),
        embeddings.fingerprint,
        before and before.fingerprint,
        settings,
        curves,
    )
    return publish_page(
        store, fingerprint, lambda: _page(model, EmbeddedSplit(embeddings, config), before, curves)
    )


def _page(
    model: ModelRef, view: EmbeddedSplit, before: EmbeddingsRef | None, curves: Mapping[str, charts.Curve]
) -> Page:
    subtitle = (
        f"{view.dataset}, split {view.config.split}: {len(view.labels):,} items of "
        f"{len(view.names):,} classes, embedded in {view.embeddings.dim} dimensions by "
        f"{view.embeddings.embedder}."
    )
    sections = [
        _numbers(view, before),
        _answers(view),
        _failures(view),
        _mistakes(view),
        _suspects(view),
        _map(view),
        *_verification(view),
        *_training(curves),
    ]
    title = f"What did {model} learn, and where does it fail?"
    return Page(title, subtitle, sections, {SUSPECTS: _suspects_csv(view)}, shows=[view.dataset])


def lay_first_pictures(
    store: str, model: ModelRef, embeddings: EmbeddingsRef | None, config: ReportConfig
) -> list[Section]:
    """Attach quickly drawn pictures to a model's run: answers, failures, thresholds, training curves.

    In the artifact folder `pictures` of the run in MLflow, with the thresholds also as `thresholds.csv`.

    Args:
        store: the store's URI.
        model: the registered version whose package made the embeddings.
        embeddings: of the dataset it was evaluated on; None: the training's curves alone.
        config: which split, how many queries, and the false-accept rates of the thresholds.

    Returns:
        What was drawn, in sections.
    """
    sections = _training(training_curves(store, model))
    if embeddings is not None:
        view = EmbeddedSplit(embeddings, config)
        sections = [_answers(view), _failures(view), *_verification(view), *sections]
    files = {f"{picture.name}.png": picture.png for section in sections for picture in section.pictures}
    for section in sections:
        if section.title == VERIFICATION and section.table:
            columns = list(dict.fromkeys(column for row in section.table for column in row))
            files[THRESHOLDS] = csv_of(columns, section.table)
    attach_pictures(store, model, files)
    return sections


def draw_training(run: Run) -> Picture | None:
    """The training curves of a running training, from MLflow; None: no curve has two points yet."""
    pictures = [picture for section in _training(curves_of_run(run)) for picture in section.pictures]
    return next(iter(pictures), None)


def _gallery(
    view: EmbeddedSplit,
    name: str,
    words: GalleryText,
    queries: Sequence[int],
    *,
    answers: int,
    table: Iterable[Mapping[str, Any]],
) -> Section:
    rows_of, shown = (
        partial(view.gallery_rows, answers=answers),
        f"each row a query and its {answers} nearest",
    )
    return gallery_section(name, words, queries, rows_of, shown, table)


def _numbers(view: EmbeddedSplit, before: EmbeddingsRef | None) -> Section:
    """Every number of the evaluation with its interval, beside the baselines."""
    embeddings, config = view.embeddings, view.config
    wanted = config.evaluation
    has_intervals = len(torch.unique(view.metrics.labels)) > 1  # one class says nothing of others
    evaluation = wanted.model_copy(
        update={
            "bootstrap": wanted.bootstrap or (BootstrapConfig() if has_intervals else None),
            "false_accept_rates": wanted.false_accept_rates
            or (config.false_accept_rates if view.curve else ()),
        }
    )
    package = require_package(embeddings.embedder, "A report")
    baselines: dict[str, Evaluation] = {}
    if wanted.baselines:
        preprocessing = read_preprocessing(package)
        baselines[RAW_PIXELS] = raw_pixel_baseline(
            view.dataset, preprocessing, evaluation, split=config.split
        )
        if before is not None:
            baselines["before training"] = evaluate(before, evaluation, split=config.split)
    report = EvaluationReport(
        dataset=view.dataset,
        package=package,
        trained=evaluate(embeddings, evaluation, split=config.split),
        baselines=baselines,
    )
    metrics, by = view.metrics, evaluation.bootstrap
    verdict = report.verdict()
    text = f"The model is {verdict}. " if verdict else ""
    text += f"Means over {len(metrics.rows):,} queries with at least one positive"
    without = metrics.num_without_positives
    text += f"; {without:,} more have none and are left out." if without else "."
    if by is not None:
        text += f" In brackets: intervals of {by.confidence:.0%}, {_RESAMPLED[by.by]} resampled."
    return Section("In numbers", text, table=_by_metric(report.table()))


_RESAMPLED = {"class": "whole classes", "query": "single queries"}


def _by_metric(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line per number and a column per embedding: a page is higher than wide."""
    names = dict.fromkeys(name for row in rows for name in row if name != "embedding")
    return [
        {"metric": name, **{str(row["embedding"]): _text(row[name]) for row in reversed(rows) if name in row}}
        for name in names
    ]


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _answers(view: EmbeddedSplit) -> Section:
    queries = view.metrics.rows.cpu()
    spread = np.linspace(0, len(queries) - 1, min(view.config.queries, len(queries))).astype(np.int64)
    text = "Spread evenly over the split, not chosen for how they look. In the corner: cosine similarity."
    return _gallery(
        view,
        "answers",
        GalleryText("Queries and answers", text, "No query has a positive."),
        queries[torch.from_numpy(spread)].tolist(),
        answers=view.config.answers,
        table=(),
    )


def _failures(view: EmbeddedSplit) -> Section:
    chosen = [
        query
        for query in worst_queries(view.metrics, view.neighbors, view.config.failures)
        if view.map_at_r[query] < 1
    ]
    text = (
        "The queries of lowest MAP@R, of equal ones those that are surest of their first answer. Look for "
        "what they share: a viewpoint, a background, a class that is really two."
    )
    words = GalleryText("Worst failures", text, "No query fails: every one finds all of its class first.")
    rows = map(view.row, chosen)
    return _gallery(view, "failures", words, chosen, answers=view.config.answers, table=rows)


def _mistakes(view: EmbeddedSplit) -> Section:
    chosen = confident_mistakes(view.neighbors, view.config.failures)
    text = "The queries whose first answer is wrong, the most similar first: no threshold would refuse these."
    words = GalleryText("Most confident mistakes", text, "No query's first answer is wrong.")
    rows = map(view.row, chosen)
    return _gallery(view, "mistakes", words, chosen, answers=view.config.answers, table=rows)


def _suspects(view: EmbeddedSplit) -> Section:
    suspects, agreeing = view.suspects, view.config.agreeing
    shown = suspects[: view.config.suspects]
    text = (
        f"{len(suspects):,} items whose {agreeing} nearest neighbours all carry one label that is not their "
        f"own (fewer where that class is smaller); {len(shown):,} are shown, all are in {SUSPECTS}. Either "
        "either the label or the embedding is wrong: look at the images."
    )
    if_empty = f"No item's {agreeing} nearest neighbours agree on a label that is not its own."
    return _gallery(
        view,
        "suspects",
        GalleryText("Suspected labels", text, if_empty),
        [suspect.query for suspect in shown],
        answers=agreeing,
        table=[_suspect_row(view, suspect) for suspect in shown],
    )


def _suspect_row(view: EmbeddedSplit, suspect: Suspect) -> dict[str, Any]:
    return {
        "id": view.ids[view.row_of(suspect.query)],
        "label": view.names[suspect.label],
        "neighbours' label": view.names[suspect.agreed],
        "neighbours": suspect.num_agreeing,
        "mean similarity": suspect.similarity,
    }


def _suspects_csv(view: EmbeddedSplit) -> bytes:
    columns = ["id", "label", "neighbours' label", "neighbours", "mean similarity"]
    return csv_of(columns, (_suspect_row(view, suspect) for suspect in view.suspects))


def _map(view: EmbeddedSplit) -> Section:
    classes = np.unique(view.labels)
    if view.vectors.shape[1] == 2:
        png = draw_circle_histograms([CircleHistogram("", view.vectors, view.labels, view.names)])
        text = "Embeddings have length 1: two dimensions are a circle. Bars count the items at each angle."
        return Section("The embedding itself", text, [Picture("map", png, "The embedding on its circle")])
    most = view.config.map_classes
    shown = classes if len(classes) <= most else classes[np.arange(most) * len(classes) // most]
    layout = map_of(view.vectors, view.labels, shown=shown, most=view.config.map_points)
    png = charts.draw_map(layout, view.labels, view.names, shown)
    text = (
        f"{len(layout.rows):,} items, {layout.how}. Nearest neighbours on the map are reliable; "
        "distances between groups, and their sizes, are not."
    )
    caption = f"Map of the embedding: {len(shown)} of {len(classes)} classes coloured"
    return Section("Map of the embedding", text, [Picture("map", png, caption)])


def _verification(view: EmbeddedSplit) -> list[Section]:
    curve, rates = view.curve, view.config.false_accept_rates
    if curve is None:
        return [no_pairs()]
    points = charts.operating_points(curve, rates)
    table = [threshold_row(rate, points.get(rate), int(curve.impostor[-1])) for rate in sorted(rates)]
    pictures = [
        Picture(
            "similarities",
            charts.draw_similarities(curve, points),
            "Similarities of pairs of the same and of different classes, with thresholds",
        ),
        Picture("roc", charts.draw_roc(curve, points), "ROC: true accepts over false accepts, logarithmic"),
    ]
    return [Section(VERIFICATION, every_pair(curve), pictures, table)]


def _training(curves: Mapping[str, charts.Curve]) -> list[Section]:
    shown = {
        name.removeprefix("validation_").replace("_", " ") + (", validation" if name != "loss" else ""): curve
        for name, curve in curves.items()
        if len(curve) > 1
    }
    if not shown:
        return [Section("Training", "MLflow has no curve of this version's training.")]
    text = "As it was logged to MLflow; after a crash the repeated steps count once."
    picture = Picture("training", charts.draw_curves(shown), "Training: " + "; ".join(shown))
    return [Section("Training", text, [picture])]

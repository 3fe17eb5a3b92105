"""Comparison page of two embeddings on the same split: paired tests, classes, queries and ROC curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from dml import storage
from dml.config import ReportConfig
from dml.errors import IncompatibleArtifact
from dml.evaluation.evaluate import paired_test, require_one_dataset, require_two_classes
from dml.metrics.verification import RocCurve
from dml.refs import EmbeddingsRef, ReportRef
from dml.report import charts, style
from dml.report.class_gains import draw_class_gains
from dml.report.embedded_split import EmbeddedSplit
from dml.report.findings import ClassGain, class_gains, only_right, win_loss_tie
from dml.report.gallery import GalleryRow
from dml.report.page import Page, Picture, Section, csv_of, publish_page
from dml.report.sections import (
    VERIFICATION,
    GalleryText,
    every_pair,
    gallery_section,
    no_pairs,
    threshold_row,
)
from dml.reports import PairedComparison

_CODE_VERSION = 3  # part of a page's identity: raise it when the same inputs would give another page
_LEADING_METRIC = "map_at_r"  # the metric of classes and galleries: it uses all R nearest items
_EXTREMES = 8  # number of classes with the largest gain, and with the largest loss, in the table
COMPARISONS, CLASSES = "comparisons.json", "classes.csv"
_COMPARISONS = TypeAdapter(list[PairedComparison])


@dataclass(frozen=True)
class Candidate:
    """An embedding and its display name: a model version, or a cell of a bench."""

    name: str
    embeddings: EmbeddingsRef


def write_comparison(store: str, first: Candidate, second: Candidate, config: ReportConfig) -> ReportRef:
    """Compare two embeddings on the same queries of a split, and publish a page.

    Args:
        store: URI of the store; the page is in its `reports/`.
        first: the embedding that should be better.
        second: the other embedding, of the same dataset.
        config: split, query and gallery sets, and sizes of the sections.

    Returns:
        The published page; the same inputs give the same page, which is written once. Its folder also
        contains `classes.csv` (all classes) and `comparisons.json` (see `read_comparisons`).

    Raises:
        IncompatibleArtifact: the embeddings have different datasets, or are the same.
        InvalidData: the split has no rows, no queries or no gallery items, or fewer than two classes with a
            positive.
        InvalidSetting: the dataset does not have an attribute of the configuration.
        ValueError: both have the same name.
    """
    require_one_dataset(first.embeddings, second.embeddings)
    if first.embeddings.fingerprint == second.embeddings.fingerprint:
        raise IncompatibleArtifact(
            f"A comparison needs two different embeddings; {first.name} and {second.name} are both from "
            f"{first.embeddings.embedder}. Choose another model or cell."
        )
    if first.name == second.name:
        raise ValueError(
            f"Two embeddings must have different names; got {first.name!r} twice. Include the versions."
        )
    parents = [(candidate.name, candidate.embeddings.fingerprint) for candidate in (first, second)]
    fingerprint = storage.digest_of("comparison", _CODE_VERSION, parents, config.model_dump(mode="json"))
    return publish_page(store, fingerprint, lambda: _page(_Pair(first, second, config)))


def read_comparisons(report: ReportRef) -> list[PairedComparison]:
    """The paired tests of a published page, in the order of `EvaluationConfig.query_metrics`."""
    return _COMPARISONS.validate_json(storage.read_bytes(storage.join(report.uri, COMPARISONS)))


class _Pair:
    """Two embeddings of the same queries; results are computed once."""

    def __init__(self, first: Candidate, second: Candidate, config: ReportConfig) -> None:
        self.config, self.names = config, (first.name, second.name)
        self.first, self.second = (
            EmbeddedSplit(candidate.embeddings, config) for candidate in (first, second)
        )
        require_two_classes(self.first.metrics, config.split)

    def name_of(self, view: EmbeddedSplit) -> str:
        return self.names[0] if view is self.first else self.names[1]

    @cached_property
    def class_gains(self) -> list[ClassGain]:
        return class_gains(self.first.metrics, self.second.metrics, _LEADING_METRIC)

    @cached_property
    def comparisons(self) -> list[PairedComparison]:
        return [self._compared(metric) for metric in self.config.evaluation.query_metrics]

    def _compared(self, metric: str) -> PairedComparison:
        first, second = self.first.metrics, self.second.metrics
        first_values, second_values = first.values[metric], second.values[metric]
        return PairedComparison(
            first=float(first_values.mean()),
            second=float(second_values.mean()),
            tested=paired_test(first, second, metric),
            queries=win_loss_tie((first_values - second_values).tolist()),
            classes=win_loss_tie([by_class.gain for by_class in class_gains(first, second, metric)]),
        )

    def gallery_rows(self, queries: Sequence[int]) -> list[GalleryRow]:
        """Each query with the answers of the first embedding, and below them those of the second."""
        first = self._titled_rows(self.first, queries, style.FIRST)
        second = [replace(row, query=None) for row in self._titled_rows(self.second, queries, style.SECOND)]
        return [row for both in zip(first, second, strict=True) for row in both]

    def _titled_rows(self, view: EmbeddedSplit, queries: Sequence[int], color: str) -> list[GalleryRow]:
        rows = zip(queries, view.gallery_rows(queries, answers=self.config.answers), strict=True)
        name = self.name_of(view)
        return [
            replace(row, title=f"{name}: MAP@R {view.map_at_r[query]:.2f}", color=color)
            for query, row in rows
        ]


def _page(pair: _Pair) -> Page:
    (first, second), one, other = pair.names, pair.first, pair.second
    subtitle = (
        f"{one.dataset}, split {pair.config.split}: {len(one.labels):,} items of {len(one.names):,} "
        f"classes, embedded in {one.embeddings.dim} dimensions by {one.embeddings.embedder} and in "
        f"{other.embeddings.dim} by {other.embeddings.embedder}."
    )
    sections = [
        _numbers(pair),
        _classes(pair),
        _only(pair, one, other),
        _only(pair, other, one),
        _verification(pair),
    ]
    title = f"Is {first} better than {second}, and where?"
    beside = {COMPARISONS: _COMPARISONS.dump_json(pair.comparisons, indent=1), CLASSES: _classes_csv(pair)}
    return Page(title, subtitle, sections, beside, shows=[one.dataset])


def _numbers(pair: _Pair) -> Section:
    leading = next(
        comparison.tested for comparison in pair.comparisons if comparison.tested.metric == _LEADING_METRIC
    )
    first, second = pair.names
    verdict = f"does not differ significantly from {second}: the interval of its gain includes 0"
    if leading.low > 0 or leading.high < 0:
        verdict = f"is {'better' if leading.gain > 0 else 'worse'} than {second}"
    text = (
        f"By MAP@R {first} {verdict}; gain {_gain(leading.gain)} {_interval(leading.low, leading.high)}. "
        f"Both have the same {leading.num_queries:,} queries of {leading.num_classes:,} classes. "
        "Intervals: 95 %, by resampling whole classes. p: one-sided p-value of the sign-flip test by class; "
        f"near 1 if {second} is better. Choose one metric in advance: among many, some p is small by chance."
    )
    return Section(
        "In numbers", text, table=[comparison_row(comparison, pair.names) for comparison in pair.comparisons]
    )


def comparison_row(comparison: PairedComparison, names: tuple[str, str]) -> dict[str, Any]:
    """The table row of a metric; wins, losses and ties are those of the first embedding."""
    tested, queries, classes = comparison.tested, comparison.queries, comparison.classes
    return {
        "metric": tested.metric,
        names[0]: comparison.first,
        names[1]: comparison.second,
        "gain": _gain(tested.gain),
        "95 %": _interval(tested.low, tested.high),
        "p": f"{tested.p_value:.4f}",
        "queries won / lost / tied": f"{queries.won:,} / {queries.lost:,} / {queries.tied:,}",
        "classes won / lost / tied": f"{classes.won:,} / {classes.lost:,} / {classes.tied:,}",
    }


def _gain(value: float) -> str:
    return f"{value:+.4f}"


def _interval(low: float, high: float) -> str:
    return f"[{_gain(low)}, {_gain(high)}]"


def _classes(pair: _Pair) -> Section:
    gains, (first, second) = pair.class_gains, pair.names
    counts = win_loss_tie([gain.gain for gain in gains])
    text = (
        f"Of {len(gains):,} classes {counts.won:,} won, {counts.lost:,} lost, {counts.tied:,} tied by "
        f"{first}. {_concentration(gains)}All are in {CLASSES}; the table has the {_EXTREMES} largest gains "
        "and losses."
    )
    caption = f"MAP@R of every class, {first} against {second}, the mean over its queries"
    png = draw_class_gains(gains, pair.first.names, pair.names)
    ends = gains if len(gains) <= 2 * _EXTREMES else [*gains[:_EXTREMES], *gains[-_EXTREMES:]]
    rows = [_class_row(pair, gain) for gain in ends]
    return Section("Which classes decide it?", text, [Picture("classes", png, caption)], rows)


def _concentration(gains: Sequence[ClassGain]) -> str:
    """The number of classes that contribute half of the gain, and half of the loss."""
    words = []
    for what, sign in (("won", 1), ("lost", -1)):
        shares = sorted((sign * gain.gain * gain.num_queries for gain in gains), reverse=True)
        shares = [share for share in shares if share > 0]
        total = sum(shares)
        if total > 0:
            few = next(n for n in range(1, len(shares) + 1) if sum(shares[:n]) >= total / 2)
            words.append(f"half of what is {what} comes from {few:,} of them")
    return f"{'; '.join(words).capitalize()}. " if words else ""


def _class_row(pair: _Pair, gain: ClassGain) -> dict[str, Any]:
    return {
        "class": pair.first.names[gain.label],
        "queries": gain.num_queries,
        f"MAP@R, {pair.names[0]}": gain.first,
        f"MAP@R, {pair.names[1]}": gain.second,
        "gain": gain.gain,
    }


def _classes_csv(pair: _Pair) -> bytes:
    rows = [_class_row(pair, gain) for gain in pair.class_gains]
    return csv_of(list(rows[0]), rows)


def _only(pair: _Pair, winner: EmbeddedSplit, loser: EmbeddedSplit) -> Section:
    name, other = pair.name_of(winner), pair.name_of(loser)
    gains = {query: value - loser.map_at_r[query] for query, value in winner.map_at_r.items()}
    queries = only_right(winner.neighbors, loser.neighbors, gains, len(gains))
    shown = queries[: pair.config.failures]
    text = (
        f"{len(queries):,} queries have a right first answer with {name} and a wrong one with {other}; "
        f"{len(shown):,} are shown, by descending difference in MAP@R. Look for what they have in common."
    )
    if_empty = text if queries else f"No query's first answer is right with {name} and wrong with {other}."
    return gallery_section(
        "only-first" if winner is pair.first else "only-second",
        GalleryText(f"Right with {name} alone", text, if_empty),
        shown,
        pair.gallery_rows,
        f"each query with the {pair.config.answers} nearest by {pair.names[0]}, then by {pair.names[1]}",
        [_query_row(pair, query, loser) for query in shown],
    )


def _query_row(pair: _Pair, query: int, loser: EmbeddedSplit) -> dict[str, Any]:
    line = loser.row(query)
    return {
        "id": line["id"],
        "label": line["label"],
        f"MAP@R, {pair.names[0]}": pair.first.map_at_r[query],
        f"MAP@R, {pair.names[1]}": pair.second.map_at_r[query],
        f"first answer with {pair.name_of(loser)}": line["first wrong answer"],
        "its similarity": line["its similarity"],
    }


def _verification(pair: _Pair) -> Section:
    first, second, rates = pair.first.curve, pair.second.curve, pair.config.false_accept_rates
    if first is None or second is None:
        return no_pairs()
    curves = dict(zip(pair.names, (first, second), strict=True))
    text = (
        f"{every_pair(first)} The two embeddings have different scales: a threshold of one is not valid for "
        "the other. Choose a new threshold when you replace a model."
    )
    pictures = [
        Picture("roc", charts.draw_both_rocs(curves, rates), "ROC of both; dots at the rates of the table"),
        Picture(
            "similarities",
            charts.draw_both_similarities(curves, rates),
            "Similarities of pairs of the same class and of different classes; the scales differ",
        ),
    ]
    return Section(VERIFICATION, text, pictures, _threshold_rows(curves, rates))


def _threshold_rows(curves: Mapping[str, RocCurve], rates: Sequence[float]) -> list[dict[str, Any]]:
    """One table row per rate and embedding."""
    points = {name: charts.operating_points(curve, rates) for name, curve in curves.items()}
    return [
        {"embedding": name, **threshold_row(rate, points[name].get(rate), int(curve.impostor[-1]))}
        for rate in sorted(rates)
        for name, curve in curves.items()
    ]

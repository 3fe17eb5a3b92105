"""Reports: numbers with their intervals, tables, and one sentence against the images' own pixels."""

import pytest
from pydantic import BaseModel

from dml import reports
from dml.refs import PackageRef
from dml.reports import RAW_PIXELS, Evaluation, EvaluationReport, Measured, Slice, against_pixels
from tests.test_refs import DATASET


def evaluation(value: float, *slices: Slice) -> Evaluation:
    metrics = {
        "recall_at_1": Measured(value=value, low=value - 0.1, high=value + 0.1),
        "nmi": Measured(value=0.5),
    }
    return Evaluation(metrics=metrics, slices=list(slices))


def part(value: str | None, recall: float) -> Slice:
    metrics = {"recall_at_1": Measured(value=recall)}
    return Slice(attribute="script", value=value, num_queries=7, metrics=metrics)


REPORT = EvaluationReport(
    dataset=DATASET,
    package=PackageRef(uri="/p", fingerprint="f" * 64, dim=1),
    trained=evaluation(0.75, part("Greek", 0.8), part(None, 0.1)),
    baselines={RAW_PIXELS: evaluation(0.5, part("Greek", 0.4))},
)


def test_a_number_is_shown_with_its_interval_where_it_has_one():
    assert str(Measured(value=0.12345)) == "0.123"
    assert str(Measured(value=0.5, low=0.25, high=0.75)) == "0.500 [0.250, 0.750]"


def test_the_table_has_a_row_per_baseline_and_the_trained_package_last():
    assert REPORT.table() == [
        {"embedding": "raw pixels", "recall_at_1": "0.500 [0.400, 0.600]", "nmi": 0.5},
        {"embedding": "trained", "recall_at_1": "0.750 [0.650, 0.850]", "nmi": 0.5},
    ]


def test_the_slices_have_a_row_per_value_and_embedding_and_name_what_is_missing():
    assert REPORT.slices() == [
        {"slice": "script Greek", "embedding": "raw pixels", "recall_at_1": 0.4, "num_queries": 7},
        {"slice": "script Greek", "embedding": "trained", "recall_at_1": 0.8, "num_queries": 7},
        {"slice": "script missing", "embedding": "trained", "recall_at_1": 0.1, "num_queries": 7},
    ]


def test_values_are_numbers_without_intervals():
    assert REPORT.metrics == {"recall_at_1": 0.75, "nmi": 0.5}
    assert REPORT.baseline_metrics == {RAW_PIXELS: {"recall_at_1": 0.5, "nmi": 0.5}}


@pytest.mark.parametrize(
    ("value", "said", "said_if_worse"),
    [(0.4, "worse than", True), (0.5, "as good as", False), (0.6, "better than", False)],
)
def test_a_package_is_set_against_the_pixels(value, said, said_if_worse):
    pixels = {RAW_PIXELS: {"r": 0.5}}
    sentence = f"{said} comparing pixels: r {value:.3f} against 0.500"
    assert against_pixels("r", {"r": value}, pixels) == sentence
    assert against_pixels("r", {"r": value}, pixels, only_worse=True) == (sentence if said_if_worse else "")


def test_without_pixels_or_number_nothing_is_said():
    assert against_pixels("r", {"r": 0.5}, {}) == ""
    assert against_pixels("r", {}, {RAW_PIXELS: {"r": 0.5}}) == ""
    assert REPORT.verdict() == "better than comparing pixels: recall_at_1 0.750 against 0.500"


KINDS = [
    k
    for k in vars(reports).values()
    if isinstance(k, type) and issubclass(k, BaseModel) and k is not BaseModel
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_report_takes_no_unknown_key_and_does_not_change(kind):
    assert kind.model_config["extra"] == "forbid"
    assert kind.model_config["frozen"] is True

"""Two embeddings of one dataset: the page's numbers are plain ones, and it shows what one alone finds."""

import csv
import io
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dml import storage
from dml.config import EvaluationConfig, ReportConfig
from dml.data.dataset import read_rows
from dml.errors import IncompatibleArtifact, InvalidData
from dml.metrics.intervals import compare_paired
from dml.metrics.ranking import Items
from dml.metrics.retrieval import query_metrics
from dml.metrics.verification import roc_of_all_pairs
from dml.refs import DatasetRef, PackageRef, ReportRef
from dml.report.comparison import CLASSES, Candidate, _concentration, read_comparisons, write_comparison
from dml.report.findings import ClassGain
from tests.embedding.parts import ROWS, ids_of, make_dataset, make_package, table_of, unit_vectors

CONFIG = ReportConfig(
    failures=5, answers=3, evaluation=EvaluationConfig(recall_at=(1, 4), precision_at=(3,), full_map=True)
)
NAMES = ("ours/2", "theirs/1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def dataset(store: str, tmp_path_factory: pytest.TempPathFactory) -> DatasetRef:
    return make_dataset(Path(tmp_path_factory.mktemp("images")), store)


@pytest.fixture(scope="module")
def package(store: str) -> PackageRef:
    return make_package(store)


def knowing(dataset: DatasetRef, classes: list[int], *, seed: int) -> np.ndarray:
    """Noise around the axis of the class for those of `classes`, noise alone for the others."""
    own = read_rows(dataset, columns=["class_id"])["class_id"].to_numpy()
    centers = np.where(np.isin(own, classes)[:, None], np.eye(16, dtype=np.float32)[own], 0)
    vectors = 1.2 * centers + unit_vectors(ROWS, 16, seed)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors(dataset: DatasetRef) -> tuple[np.ndarray, np.ndarray]:
    """Of five test classes the first embedding knows three, the second another two, one of them both."""
    labels = sorted(set(read_rows(dataset, split="test", columns=["class_id"])["class_id"].to_pylist()))
    return knowing(dataset, labels[:3], seed=1), knowing(dataset, labels[2:4], seed=2)


@pytest.fixture(scope="module")
def candidates(store, dataset, package, vectors) -> tuple[Candidate, Candidate]:
    first, second = (
        Candidate(name, table_of(store, package, dataset, each))
        for name, each in zip(NAMES, vectors, strict=True)
    )
    return first, second


@pytest.fixture(scope="module")
def report(store, candidates) -> ReportRef:
    return write_comparison(store, *candidates, CONFIG)


@pytest.fixture(scope="module")
def evaluated_pair(dataset, vectors):
    """The metrics room's values of both, and the classes."""
    rows = read_rows(dataset, split="test", columns=["class_id"])
    positions, labels = rows["position"].to_numpy(), torch.from_numpy(rows["class_id"].to_numpy()).long()
    metrics = [
        query_metrics(
            Items(torch.from_numpy(each[positions]), labels),
            recall_at=(1, 4),
            precision_at=(3,),
            full_map=True,
        )
        for each in vectors
    ]
    return metrics, labels, positions


def page_of(report: ReportRef) -> str:
    return unescape(Path(report.page).read_text())


def tables_of(report: ReportRef) -> list[list[list[str]]]:
    """Every table's lines, the head first, as text."""
    return [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr>(.*?)</tr>", table)]
        for table in re.findall(r"<table>(.*?)</table>", page_of(report), re.DOTALL)
    ]


def test_every_metrics_test_is_the_plain_one(report, evaluated_pair):
    (ours, theirs), labels, _ = evaluated_pair
    comparisons = read_comparisons(report)
    assert [comparison.tested.metric for comparison in comparisons] == CONFIG.evaluation.query_metrics
    for comparison, shown in zip(comparisons, tables_of(report)[0][1:], strict=True):
        first, second = ours.values[comparison.tested.metric], theirs.values[comparison.tested.metric]
        plain = compare_paired(first, second, labels)
        tested = comparison.tested
        assert (tested.gain, tested.p_value) == (plain.gain, plain.p_value)
        assert (tested.low, tested.high) == (plain.interval.low, plain.interval.high)
        assert (tested.num_queries, tested.num_classes) == (60, 5)
        assert (comparison.first, comparison.second) == (float(first.mean()), float(second.mean()))
        assert shown[:4] == [
            tested.metric,
            f"{comparison.first:.4f}",
            f"{comparison.second:.4f}",
            f"{plain.gain:+.4f}",
        ]
        assert shown[5] == f"{plain.p_value:.4f}"


def test_won_lost_and_tied_are_counted_by_query_and_by_class(report, evaluated_pair):
    (ours, theirs), labels, _ = evaluated_pair
    for comparison in read_comparisons(report):
        pairs = list(
            zip(
                ours.values[comparison.tested.metric].tolist(),
                theirs.values[comparison.tested.metric].tolist(),
                strict=True,
            )
        )
        assert comparison.queries.won == sum(a > b + 1e-12 for a, b in pairs)
        assert comparison.queries.lost == sum(b > a + 1e-12 for a, b in pairs)
        assert comparison.queries.won + comparison.queries.lost + comparison.queries.tied == 60
        by_class = {
            label: sum(a - b for (a, b), own in zip(pairs, labels.tolist(), strict=True) if own == label)
            for label in set(labels.tolist())
        }
        assert comparison.classes.won == sum(gain > 1e-9 for gain in by_class.values())
        assert comparison.classes.lost == sum(gain < -1e-9 for gain in by_class.values())
        assert comparison.classes.won + comparison.classes.lost + comparison.classes.tied == 5
    led = read_comparisons(report)[-2]
    assert led.tested.metric == "map_at_r"
    assert led.classes.won >= 2, "the case must have some"
    assert led.classes.lost >= 1, "the case must have some"


def test_the_classes_are_listed_by_gain_with_both_means(report, evaluated_pair, dataset):
    (ours, theirs), labels, _ = evaluated_pair
    rows = list(csv.DictReader(io.StringIO((Path(report.uri) / CLASSES).read_text())))
    names = read_rows(dataset, split="test", columns=["label"])["label"].to_pylist()
    expected = {
        names[own.nonzero()[0, 0]]: (
            float(ours.values["map_at_r"][own].mean()),
            float(theirs.values["map_at_r"][own].mean()),
        )
        for own in (labels == label for label in labels.unique())
    }
    gains = [float(row["gain"]) for row in rows]
    assert gains == sorted(gains, reverse=True)
    assert {row["class"] for row in rows} == expected.keys()
    for row, gain in zip(rows, gains, strict=True):
        first, second = expected[row["class"]]
        assert float(row["MAP@R, ours/2"]) == pytest.approx(first, abs=1e-12)
        assert float(row["MAP@R, theirs/1"]) == pytest.approx(second, abs=1e-12)
        assert gain == pytest.approx(first - second, abs=1e-12)
    assert tables_of(report)[1][1][0] == rows[0]["class"]


def test_the_galleries_are_of_queries_that_one_alone_gets_right(report, evaluated_pair, dataset, vectors):
    (ours, theirs), labels, positions = evaluated_pair
    ids = [ids_of(dataset)[position] for position in positions]
    right = []
    for each in vectors:
        similarities = each[positions] @ each[positions].T
        np.fill_diagonal(similarities, -np.inf)
        right.append(labels.numpy()[similarities.argmax(1)] == labels.numpy())
    gains = (ours.values["map_at_r"] - theirs.values["map_at_r"]).numpy()
    for table, won, sign in ((2, right[0] & ~right[1], 1), (3, right[1] & ~right[0], -1)):
        expected = sorted(
            np.flatnonzero(won).tolist(), key=lambda query, sign=sign: (-sign * gains[query], query)
        )
        assert len(expected) > CONFIG.failures, "the case must have more than are shown"
        assert [line[1] for line in tables_of(report)[table][1:]] == [
            ids[q] for q in expected[: CONFIG.failures]
        ]
        assert f"{len(expected)} queries have a right first answer" in page_of(report)


def test_the_page_names_both_and_holds_its_pictures(report, dataset):
    html = page_of(report)
    assert "<title>Is ours/2 better than theirs/1, and where?</title>" in html
    assert f"shelves@{dataset.version}, split test: 60 items of 5 classes" in html
    assert "Right with ours/2 alone" in html
    assert "Right with theirs/1 alone" in html
    assert set(report.pictures) == {
        f"{name}.png" for name in ("classes", "only-first", "only-second", "roc", "similarities")
    }
    for name in report.pictures:
        assert Image.open(Path(report.uri) / name).format == "PNG"


def test_the_thresholds_are_those_of_each_embeddings_own_curve(report, evaluated_pair, vectors):
    _, labels, positions = evaluated_pair
    lines = tables_of(report)[4][1:]
    assert [line[0] for line in lines] == list(NAMES) * len(CONFIG.false_accept_rates)
    for name, each in zip(NAMES, vectors, strict=True):
        curve = roc_of_all_pairs(torch.from_numpy(each[positions]), labels)
        shown = [line[2] for line in lines if line[0] == name]
        points = [curve.at_false_accept_rate(rate) for rate in sorted(CONFIG.false_accept_rates)]
        assert shown == [f"{point.threshold:.4f}" for point in points]


@pytest.mark.parametrize(("order", "verdict"), [((0, 1), "is better than"), ((1, 0), "is worse than")])
def test_the_verdict_is_that_of_the_interval(store, package, dataset, order, verdict):
    labels = sorted(set(read_rows(dataset, columns=["class_id"])["class_id"].to_pylist()))
    sides = [
        Candidate(name, table_of(store, package, dataset, knowing(dataset, known, seed=seed)))
        for name, known, seed in (("all", labels, 3), ("none", [], 4))
    ]
    first, second = (sides[place] for place in order)
    html = page_of(write_comparison(store, first, second, CONFIG))
    assert f"By MAP@R {first.name} {verdict} {second.name}; gain" in html


def test_a_gain_within_noise_is_no_verdict(report):
    led = read_comparisons(report)[-2].tested
    assert led.low < 0 < led.high
    assert "By MAP@R ours/2 does not differ significantly from theirs/1" in page_of(report)


def test_the_same_inputs_are_compared_once_and_give_the_same_bytes(report, store, candidates):
    def written() -> dict[str, tuple[int, bytes]]:
        return {
            each.name: (each.stat().st_mtime_ns, each.read_bytes()) for each in Path(report.uri).iterdir()
        }

    before = written()
    assert write_comparison(store, *candidates, CONFIG) == report
    assert written() == before
    storage.delete(report.uri)
    assert write_comparison(store, *candidates, CONFIG) == report
    assert {name: content for name, (_, content) in written().items()} == {
        name: content for name, (_, content) in before.items()
    }


def test_the_other_way_round_is_another_page_with_the_sign_turned(report, store, candidates):
    turned = write_comparison(store, *reversed(candidates), CONFIG)
    assert turned.uri != report.uri
    for one, other in zip(read_comparisons(report), read_comparisons(turned), strict=True):
        assert one.tested.gain == pytest.approx(-other.tested.gain, abs=1e-12)
        assert (one.queries.won, one.queries.lost) == (other.queries.lost, other.queries.won)


def test_where_one_finds_all_that_the_other_does_there_is_no_gallery(store, dataset, package, candidates):
    own = read_rows(dataset, columns=["class_id"])["class_id"].to_numpy()
    perfect = table_of(store, package, dataset, np.eye(16, dtype=np.float32)[own])
    report = write_comparison(store, Candidate("perfect", perfect), candidates[1], CONFIG)
    assert "only-first.png" in report.pictures
    assert "only-second.png" not in report.pictures
    assert "No query's first answer is right with theirs/1 and wrong with perfect." in page_of(report)


def test_what_cannot_be_compared_is_refused_and_nothing_is_written(store, package, candidates, tmp_path):
    first, second = candidates
    other = make_dataset(tmp_path / "images", str(tmp_path), rows=30, first=7)
    elsewhere = Candidate("other", table_of(str(tmp_path), package, other, unit_vectors(30, 16, 1)))
    before = sorted(Path(store, "reports").iterdir()) if Path(store, "reports").exists() else []
    with pytest.raises(IncompatibleArtifact, match="the same dataset"):
        write_comparison(store, first, elsewhere, CONFIG)
    with pytest.raises(
        IncompatibleArtifact, match="two different embeddings; ours/2 and again are both from"
    ):
        write_comparison(store, first, Candidate("again", first.embeddings), CONFIG)
    with pytest.raises(ValueError, match="different names; got 'ours/2' twice"):
        write_comparison(store, first, Candidate("ours/2", second.embeddings), CONFIG)
    assert (sorted(Path(store, "reports").iterdir()) if Path(store, "reports").exists() else []) == before


def test_a_split_without_any_positive_cannot_be_compared(store, package, tmp_path):
    alone = make_dataset(tmp_path / "images", store, rows=10, first=200)
    sides = [
        Candidate(name, table_of(store, package, alone, unit_vectors(10, 16, seed)))
        for name, seed in (("a", 1), ("b", 2))
    ]
    with pytest.raises(InvalidData, match=r"at least 2 classes .*; the split 'test' has 0"):
        write_comparison(store, *sides, CONFIG)


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        (
            [0.4, 0.1, 0.1, 0.1, -0.2, -0.2],
            "Half of what is won comes from 1 of them; half of what is lost comes from 1",
        ),
        ([0.1, 0.1, 0.1], "Half of what is won comes from 2 of them. "),
        ([0.0, 0.0], ""),
    ],
)
def test_the_page_says_how_few_classes_make_a_gain(gains, says):
    classes = [ClassGain(label, 10, 0.5 + gain, 0.5) for label, gain in enumerate(gains)]
    actual = _concentration(classes)
    assert actual.startswith(says)
    assert bool(actual) == bool(says)
    assert ("lost" in actual) == (min(gains) < 0)


def test_a_class_with_more_queries_weighs_more_in_a_gain():
    assert (
        "half of what is won comes from 1 of"
        in _concentration(
            [ClassGain(0, 1, 0.9, 0.1), ClassGain(1, 1, 0.9, 0.1), ClassGain(2, 40, 0.6, 0.5)]
        ).lower()
    )

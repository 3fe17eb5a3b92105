"""What a configuration asks for is what the metrics room gives on the right rows, under promised names."""

import numpy as np
import pytest
import torch

from dml.config import BootstrapConfig, EvaluationConfig, FewShotConfig, GateConfig
from dml.data.dataset import read_rows
from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting
from dml.evaluation.evaluate import compare, evaluate
from dml.evaluation.kmeans import k_means
from dml.evaluation.protocol import measure, seeds_for
from dml.evaluation.query_gallery import Rows
from dml.metrics.clustering import normalized_mutual_information
from dml.metrics.fewshot import few_shot
from dml.metrics.intervals import bootstrap_intervals, compare_paired
from dml.metrics.ranking import Items
from dml.metrics.retrieval import query_metrics
from dml.metrics.verification import roc_of_all_pairs
from dml.reports import Evaluation, EvaluationReport, Measured, Slice
from tests.embedding.parts import ROWS, make_dataset, table_of, unit_vectors

LABELS = np.arange(90) // 6
SHELVES = [None if i % 10 == 0 else ["top", "low/er"][i % 2] for i in range(90)]
ROLES = ["query" if i % 3 == 0 else "gallery" if i % 3 == 1 else None for i in range(90)]
ROWS_ = Rows(LABELS, {"shelf": SHELVES, "role": ROLES, "ward": [f"w{label % 2}" for label in LABELS]})
VECTORS = unit_vectors(90, 8, 0)
ITEMS = Items(torch.from_numpy(VECTORS), torch.from_numpy(LABELS))


def ends(each):
    return each.low, each.high


EVERYTHING = EvaluationConfig(
    precision_at=(5,),
    map_at=(5,),
    map_denominators=("relevant", "attainable", "retrieved"),
    full_map=True,
    macro=True,
    slices=("shelf",),
    bootstrap=BootstrapConfig(resamples=50),
    false_accept_rates=(1e-3, 0.1),
    few_shot=FewShotConfig(ways=5, shots=(1, 3), queries_per_class=2, episodes=20, within="ward"),
    ami=True,
    kmeans_seeds=2,
)


def test_the_configuration_names_what_the_evaluation_gives():
    metrics = measure(VECTORS, ROWS_, EVERYTHING).metrics
    assert sorted(metrics) == sorted(EVERYTHING.metrics)
    assert set(EVERYTHING.query_metrics) <= set(EVERYTHING.metrics)
    assert all(
        metrics[name].low <= metrics[name].high for name in [*EVERYTHING.query_metrics, "tar_at_far_0.1"]
    )


def test_every_number_is_that_of_the_metrics_room():
    evaluation = measure(VECTORS, ROWS_, EVERYTHING)
    actual, with_intervals = evaluation.values, evaluation.metrics
    queries = query_metrics(
        ITEMS, precision_at=(5,), map_at=(5,), map_denominators=EVERYTHING.map_denominators, full_map=True
    )
    assert {name: actual[name] for name in queries.values} == queries.means()
    assert actual["map_at_r_macro"] == queries.class_means()["map_at_r"]
    interval = bootstrap_intervals(queries.values, queries.labels, resamples=50)["map_at_r"]
    assert ends(with_intervals["map_at_r"]) == ends(interval)
    curve = roc_of_all_pairs(ITEMS.embeddings, ITEMS.labels)
    assert actual["eer"] == curve.equal_error_rate()
    assert actual["tar_at_far_0.1"] == curve.at_false_accept_rate(0.1).true_accept_rate
    episodes = few_shot(
        *(ITEMS.embeddings, ITEMS.labels),
        ways=5,
        shots=3,
        queries_per_class=2,
        episodes=20,
        within=ITEMS.labels % 2,
    )
    assert actual["5_way_3_shot_nearest"] == episodes.means()["nearest"]
    runs = [torch.from_numpy(k_means(VECTORS, 15, seed=seed)) for seed in (1, 2)]
    by_seed = [normalized_mutual_information(ITEMS.labels, clusters) for clusters in runs]
    assert by_seed[0] != by_seed[1]
    assert actual["nmi"] == pytest.approx(sum(by_seed) / 2)


def test_slices_are_those_of_every_value_and_count_their_queries():
    slices = measure(VECTORS, ROWS_, EvaluationConfig(slices=("shelf",), nmi=False)).slices
    queries = query_metrics(ITEMS)
    assert [(part.attribute, part.value) for part in slices] == [
        ("shelf", "low/er"),
        ("shelf", "top"),
        ("shelf", None),
    ]
    for part in slices:
        chosen = torch.tensor([shelf == part.value for shelf in SHELVES])
        assert part.num_queries == int(chosen.sum())
        assert {name: each.value for name, each in part.metrics.items()} == queries.select(chosen).means()


def test_queries_without_a_positive_are_counted_and_said():
    labels = np.array([*LABELS[:60], *range(100, 130)])
    evaluation = measure(VECTORS, Rows(labels, {}), EvaluationConfig())
    assert (evaluation.num_queries, evaluation.num_without_positives) == (60, 30)
    assert evaluation.left_out.startswith("means over 60 queries; 30 more have no positive")
    assert not measure(VECTORS, ROWS_, EvaluationConfig()).left_out


def test_queries_search_the_gallery_alone_where_the_rows_have_roles():
    evaluation = measure(
        VECTORS, ROWS_, EvaluationConfig(role_attribute="role", slices=("shelf",), nmi=False)
    )
    values = evaluation.values
    is_query, is_gallery = (torch.tensor([role == each for role in ROLES]) for each in ("query", "gallery"))
    queries = query_metrics(
        Items(ITEMS.embeddings[is_query], ITEMS.labels[is_query]),
        Items(ITEMS.embeddings[is_gallery], ITEMS.labels[is_gallery]),
    )
    assert {name: values[name] for name in queries.values} == queries.means()
    (top,) = (part for part in evaluation.slices if part.value == "top")
    sliced = [SHELVES[row] == "top" for row in range(90) if is_query[row]]
    assert top.metrics["recall_at_1"].value == queries.select(torch.tensor(sliced)).means()["recall_at_1"]


def test_answers_by_the_same_camera_are_left_out_but_a_missing_camera_is_no_camera():
    values = measure(VECTORS, ROWS_, EvaluationConfig(same_camera_attribute="shelf", nmi=False)).values
    groups = torch.tensor(
        [1000 + i if shelf is None else hash(shelf) % 1000 for i, shelf in enumerate(SHELVES)]
    )
    expected = query_metrics(Items(ITEMS.embeddings, ITEMS.labels, groups=groups)).means()
    assert {name: values[name] for name in expected} == expected
    assert expected != query_metrics(ITEMS).means()


def test_clusters_of_few_rows_are_those_of_20_seeds_with_their_spread():
    nmi = measure(VECTORS, ROWS_, EvaluationConfig()).metrics["nmi"]
    clusters = [torch.from_numpy(k_means(VECTORS, 15, seed=seed)) for seed in range(1, 21)]
    runs = [normalized_mutual_information(ITEMS.labels, each) for each in clusters]
    assert nmi.value == pytest.approx(sum(runs) / 20)
    assert ends(nmi) == (min(runs), max(runs))
    assert [seeds_for(size) for size in (2_000, 2_001, 20_000, 60_502)] == [20, 5, 5, 1]


def test_k_means_of_as_many_clusters_as_vectors_gives_each_its_own_without_a_warning(capfd):
    clusters = k_means(np.eye(6, dtype=np.float32), 6)
    assert sorted(clusters) == list(range(6))
    assert capfd.readouterr().err == "", "Faiss warns below its least number of points per cluster"


def test_intervals_of_verification_and_episodes_are_the_metrics_room_s():
    metrics = measure(VECTORS, ROWS_, EVERYTHING).metrics
    point = roc_of_all_pairs(ITEMS.embeddings, ITEMS.labels).at_false_accept_rate(0.1)
    assert ends(metrics["tar_at_far_0.1"]) == ends(point.true_accept_interval)
    assert metrics["5_way_1_shot_nearest"].low <= metrics["5_way_1_shot_nearest"].value


def test_the_report_shows_intervals_in_brackets_and_slices_apart(dataset, package):
    metrics = {"recall_at_1": Measured(value=0.5, low=0.4, high=0.6), "nmi": Measured(value=0.7)}
    top, missing = (
        Slice(attribute="shelf", value=value, num_queries=7, metrics={"nmi": Measured(value=0.3)})
        for value in ("top", None)
    )
    report = EvaluationReport(
        dataset=dataset,
        package=package,
        trained=Evaluation(metrics=metrics, slices=[top, missing]),
        baselines={"raw pixels": Evaluation(metrics={"nmi": Measured(value=0.1)}, slices=[top])},
    )
    assert report.metrics == {"recall_at_1": 0.5, "nmi": 0.7}
    assert report.table() == [
        {"embedding": "raw pixels", "nmi": 0.1},
        {"embedding": "trained", "recall_at_1": "0.500 [0.400, 0.600]", "nmi": 0.7},
    ]
    assert report.slices() == [
        {"slice": "shelf top", "embedding": "raw pixels", "nmi": 0.3, "num_queries": 7},
        {"slice": "shelf top", "embedding": "trained", "nmi": 0.3, "num_queries": 7},
        {"slice": "shelf missing", "embedding": "trained", "nmi": 0.3, "num_queries": 7},
    ]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (EvaluationConfig(role_attribute="shelf"), InvalidData, "query"),
        (EvaluationConfig(few_shot=FewShotConfig(ways=50), nmi=False), InvalidSetting, "few_shot"),
    ],
)
def test_what_the_rows_do_not_allow_is_refused_with_the_setting(config, error, message):
    with pytest.raises(error, match=message):
        measure(VECTORS, ROWS_, config)


def test_an_attribute_of_too_many_values_is_not_sliced_by():
    rows = Rows(np.arange(202) // 2, {"id": list(range(202))})
    with pytest.raises(InvalidData, match="at most 100 values; 'id' has 202"):
        measure(unit_vectors(202, 8, 0), rows, EvaluationConfig(slices=("id",), nmi=False))


@pytest.mark.parametrize(
    ("name", "setting"), [("false_accept_rates", (0.1,)), ("bootstrap", BootstrapConfig(resamples=9))]
)
def test_one_class_is_refused_with_the_setting(name, setting):
    config = EvaluationConfig(**{name: setting}, nmi=False)
    with pytest.raises(InvalidSetting, match=f"evaluation.{name} asks.* classes|class"):
        measure(VECTORS, Rows(LABELS * 0, {}), config)


def test_an_attribute_the_dataset_has_not_is_refused(store, dataset, package):
    table = table_of(store, package, dataset, unit_vectors(ROWS, 16, 1))
    with pytest.raises(InvalidSetting, match="colour"):
        evaluate(table, EvaluationConfig(slices=("colour",)))


def test_attributes_of_the_dataset_slice_its_queries(store, dataset, package):
    table = table_of(store, package, dataset, unit_vectors(ROWS, 16, 1))
    slices = evaluate(table, EvaluationConfig(slices=("shelf", "sold"), nmi=False)).slices
    shelves = read_rows(dataset, split="test", columns=["shelf"])["shelf"].to_pylist()
    counts = {(part.attribute, part.value): part.num_queries for part in slices}
    assert counts["shelf", "top"] == shelves.count("top")
    assert counts["shelf", None] == shelves.count("")
    assert {("sold", "True"), ("sold", "False")} <= counts.keys()


def test_two_tables_are_compared_on_the_same_queries(store, dataset, package):
    classes = read_rows(dataset, columns=["class_id"])["class_id"].to_numpy()
    known = np.eye(16, dtype=np.float32)[classes] + 0.3 * unit_vectors(ROWS, 16, 5)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    tables = [table_of(store, package, dataset, vectors) for vectors in (known, unit_vectors(ROWS, 16, 6))]
    gate = GateConfig(metric="map_at_r", min_gain=0.1)
    comparison = compare(*tables, EvaluationConfig(), gate)
    rows = read_rows(dataset, split="test", columns=["class_id"])
    positions, labels = rows["position"].to_numpy(), torch.from_numpy(rows["class_id"].to_numpy()).long()
    values = [
        query_metrics(Items(torch.from_numpy(vectors[positions]), labels)).values["map_at_r"]
        for vectors in (known, unit_vectors(ROWS, 16, 6))
    ]
    expected = compare_paired(*values, labels, margin=0.1)
    assert (comparison.gain, comparison.p_value, comparison.low) == (
        expected.gain,
        expected.p_value,
        expected.interval.low,
    )
    assert (comparison.num_queries, comparison.num_classes) == (60, 5)
    assert comparison.gain > 0.1
    assert compare(*reversed(tables), EvaluationConfig(), gate).p_value > 0.9


def test_tables_of_different_datasets_are_not_compared(store, dataset, package, tmp_path):
    other = make_dataset(tmp_path / "images", str(tmp_path), rows=30, first=7)
    tables = [
        table_of(store, package, dataset, unit_vectors(ROWS, 16, 1)),
        table_of(str(tmp_path), package, other, unit_vectors(30, 16, 1)),
    ]
    with pytest.raises(IncompatibleArtifact, match="the same dataset"):
        compare(*tables, EvaluationConfig(), GateConfig())


def test_a_number_that_single_queries_do_not_have_is_not_compared(embeddings):
    with pytest.raises(InvalidSetting, match="nmi"):
        compare(embeddings, embeddings, EvaluationConfig(), GateConfig(metric="nmi"))

"""What a configuration asks for is what the metrics room gives on the right rows, under promised names."""

import numpy as np
import pytest
import torch

from dml.config import BootstrapConfig, EvaluationConfig, FewShotConfig, GateConfig
from dml.data.dataset import read_rows
from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting
from dml.evaluation import protocol
from dml.evaluation.evaluate import compare, evaluate
from dml.evaluation.kmeans import k_means
from dml.evaluation.protocol import measure, seeds_for
from dml.evaluation.query_gallery import Rows
from dml.metrics.clustering import normalised_mutual_information
from dml.metrics.fewshot import few_shot
from dml.metrics.intervals import bootstrap_intervals, compare_paired
from dml.metrics.ranking import Items
from dml.metrics.retrieval import query_metrics
from dml.metrics.verification import roc_of_all_pairs
from dml.refs import EvaluationReport
from tests.embedding.parts import ROWS, make_dataset, table_of, unit_vectors

LABELS = np.arange(90) // 6
SHELVES = [None if i % 10 == 0 else ["top", "low/er"][i % 2] for i in range(90)]
ROLES = ["query" if i % 3 == 0 else "gallery" if i % 3 == 1 else None for i in range(90)]
ROWS_ = Rows(LABELS, {"shelf": SHELVES, "role": ROLES, "ward": [f"w{label % 2}" for label in LABELS]})
VECTORS = unit_vectors(90, 8, 0)
ITEMS = Items(torch.from_numpy(VECTORS), torch.from_numpy(LABELS))
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
    found = measure(VECTORS, ROWS_, EVERYTHING)
    plain = [name for name in found if "/" not in name and not name.endswith((".low", ".high"))]
    assert sorted(plain) == sorted(EVERYTHING.metrics)
    assert set(EVERYTHING.query_metrics) <= set(EVERYTHING.metrics)
    assert all(f"{name}.low" in found for name in [*EVERYTHING.query_metrics, "tar_at_far_0.1"])


def test_every_number_is_that_of_the_metrics_room():
    found = measure(VECTORS, ROWS_, EVERYTHING)
    queries = query_metrics(
        ITEMS, precision_at=(5,), map_at=(5,), map_denominators=EVERYTHING.map_denominators, full_map=True
    )
    assert {name: found[name] for name in queries.values} == queries.means()
    assert found["map_at_r_macro"] == queries.class_means()["map_at_r"]
    interval = bootstrap_intervals(queries.values, queries.labels, resamples=50)["map_at_r"]
    assert (found["map_at_r.low"], found["map_at_r.high"]) == (interval.low, interval.high)
    curve = roc_of_all_pairs(ITEMS.embeddings, ITEMS.labels)
    assert found["eer"] == curve.equal_error_rate()
    assert found["tar_at_far_0.1"] == curve.at_false_accept_rate(0.1).true_accept_rate
    episodes = few_shot(
        *(ITEMS.embeddings, ITEMS.labels),
        ways=5,
        shots=3,
        queries_per_class=2,
        episodes=20,
        within=ITEMS.labels % 2,
    )
    assert found["5_way_3_shot_nearest"] == episodes.means()["nearest"]
    runs = [torch.from_numpy(k_means(VECTORS, 15, seed=seed)) for seed in (1, 2)]
    by_seed = [normalised_mutual_information(ITEMS.labels, clusters) for clusters in runs]
    assert by_seed[0] != by_seed[1]
    assert found["nmi"] == pytest.approx(sum(by_seed) / 2)


def test_slices_are_named_as_mlflow_allows_and_count_their_queries():
    found = measure(VECTORS, ROWS_, EvaluationConfig(slices=("shelf",), nmi=False))
    queries = query_metrics(ITEMS)
    for name, value in {"top": "top", "low_er": "low/er", "missing": None}.items():
        chosen = torch.tensor([shelf == value for shelf in SHELVES])
        assert found[f"shelf/{name}/num_queries"] == int(chosen.sum())
        assert found[f"shelf/{name}/recall_at_1"] == queries.of(chosen).means()["recall_at_1"]


def test_values_that_a_name_cannot_tell_apart_stay_apart():
    shelves = [["low/er", "low:er", "low?er", "missing", None][i % 5] for i in range(90)]
    found = measure(VECTORS, Rows(LABELS, {"shelf": shelves}), EvaluationConfig(slices=("shelf",), nmi=False))
    counts = {key: value for key, value in found.items() if key.endswith("num_queries")}
    names = ["low_er", "low:er", "low_er_", "missing", "missing_"]
    assert counts == {f"shelf/{name}/num_queries": 18 for name in names}


def test_queries_search_the_gallery_alone_where_the_rows_have_roles():
    found = measure(VECTORS, ROWS_, EvaluationConfig(role_attribute="role", slices=("shelf",), nmi=False))
    asks, answers = (torch.tensor([role == each for role in ROLES]) for each in ("query", "gallery"))
    queries = query_metrics(
        Items(ITEMS.embeddings[asks], ITEMS.labels[asks]),
        Items(ITEMS.embeddings[answers], ITEMS.labels[answers]),
    )
    assert {name: found[name] for name in queries.values} == queries.means()
    sliced = [SHELVES[row] == "top" for row in range(90) if asks[row]]
    assert found["shelf/top/recall_at_1"] == queries.of(torch.tensor(sliced)).means()["recall_at_1"]


def test_answers_by_the_same_camera_are_left_out_but_a_missing_camera_is_no_camera():
    found = measure(VECTORS, ROWS_, EvaluationConfig(same_camera_attribute="shelf", nmi=False))
    groups = torch.tensor(
        [1000 + i if shelf is None else hash(shelf) % 1000 for i, shelf in enumerate(SHELVES)]
    )
    expected = query_metrics(Items(ITEMS.embeddings, ITEMS.labels, groups=groups)).means()
    assert {name: found[name] for name in expected} == expected
    assert expected != query_metrics(ITEMS).means()


def test_clusters_of_few_rows_are_those_of_20_seeds_with_their_spread():
    found = measure(VECTORS, ROWS_, EvaluationConfig())
    clusters = [torch.from_numpy(k_means(VECTORS, 15, seed=seed)) for seed in range(1, 21)]
    runs = [normalised_mutual_information(ITEMS.labels, each) for each in clusters]
    assert found["nmi"] == pytest.approx(sum(runs) / 20)
    assert (found["nmi.low"], found["nmi.high"]) == (min(runs), max(runs))
    assert [seeds_for(size) for size in (2_000, 2_001, 20_000, 60_502)] == [20, 5, 5, 1]


def test_intervals_of_verification_and_episodes_are_the_metrics_room_s():
    found = measure(VECTORS, ROWS_, EVERYTHING)
    point = roc_of_all_pairs(ITEMS.embeddings, ITEMS.labels).at_false_accept_rate(0.1)
    interval = point.true_accept_interval
    assert (found["tar_at_far_0.1.low"], found["tar_at_far_0.1.high"]) == (interval.low, interval.high)
    assert found["5_way_1_shot_nearest.low"] <= found["5_way_1_shot_nearest"]


def test_the_report_shows_intervals_in_brackets_and_slices_apart(dataset, package):
    metrics = {"recall_at_1": 0.5, "recall_at_1.low": 0.4, "recall_at_1.high": 0.6, "nmi": 0.7}
    sliced = {"shelf/top/recall_at_1": 0.3, "shelf/top/num_queries": 7}
    report = EvaluationReport(
        dataset=dataset,
        package=package,
        metrics={**metrics, **sliced},
        baselines={"raw pixels": {"nmi": 0.1}},
    )
    assert report.table() == [
        {"embedding": "raw pixels", "nmi": 0.1},
        {"embedding": "trained", "recall_at_1": "0.500 [0.400, 0.600]", "nmi": 0.7},
    ]
    assert report.slices() == [
        {"slice": "shelf top", "embedding": "trained", "recall_at_1": 0.3, "num_queries": 7}
    ]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (EvaluationConfig(role_attribute="shelf"), InvalidData, "query"),
        (EvaluationConfig(few_shot=FewShotConfig(ways=50), nmi=False), InvalidSetting, "few_shot"),
        (EvaluationConfig(slices=("shelf",), nmi=False), InvalidData, "1 values"),
    ],
)
def test_what_the_rows_do_not_allow_is_refused_with_the_setting(config, error, message, monkeypatch):
    monkeypatch.setattr(protocol, "MOST_SLICES", 1)
    with pytest.raises(error, match=message.replace("1 values", "at most 1 values")):
        measure(VECTORS, ROWS_, config)


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
    found = evaluate(table, EvaluationConfig(slices=("shelf", "sold"), nmi=False))
    shelves = read_rows(dataset, split="test", columns=["shelf"])["shelf"].to_pylist()
    assert found["shelf/top/num_queries"] == shelves.count("top")
    assert found["shelf/missing/num_queries"] == shelves.count("")
    assert {"sold/True/recall_at_1", "sold/False/map_at_r"} <= found.keys()


def test_two_tables_are_compared_on_the_same_queries(store, dataset, package):
    classes = read_rows(dataset, columns=["class_index"])["class_index"].to_numpy()
    known = np.eye(16, dtype=np.float32)[classes] + 0.3 * unit_vectors(ROWS, 16, 5)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    tables = [table_of(store, package, dataset, vectors) for vectors in (known, unit_vectors(ROWS, 16, 6))]
    gate = GateConfig(metric="map_at_r", min_gain=0.1)
    found = compare(*tables, EvaluationConfig(), gate)
    rows = read_rows(dataset, split="test", columns=["class_index"])
    positions, labels = rows["position"].to_numpy(), torch.from_numpy(rows["class_index"].to_numpy()).long()
    values = [
        query_metrics(Items(torch.from_numpy(vectors[positions]), labels)).values["map_at_r"]
        for vectors in (known, unit_vectors(ROWS, 16, 6))
    ]
    expected = compare_paired(*values, labels, margin=0.1)
    assert (found.gain, found.p_value, found.low) == (expected.gain, expected.p_value, expected.interval.low)
    assert (found.num_queries, found.num_classes) == (60, 5)
    assert found.gain > 0.1
    assert compare(*reversed(tables), EvaluationConfig(), gate).p_value > 0.9


def test_tables_of_different_datasets_are_not_compared(store, dataset, package, tmp_path):
    other = make_dataset(tmp_path / "images", str(tmp_path), rows=30, first=7)
    tables = [
        table_of(store, package, dataset, unit_vectors(ROWS, 16, 1)),
        table_of(str(tmp_path), package, other, unit_vectors(30, 16, 1)),
    ]
    with pytest.raises(IncompatibleArtifact, match="one dataset"):
        compare(*tables, EvaluationConfig(), GateConfig())


def test_a_number_that_single_queries_do_not_have_is_not_compared(embeddings):
    with pytest.raises(InvalidSetting, match="nmi"):
        compare(embeddings, embeddings, EvaluationConfig(), GateConfig(metric="nmi"))

"""Model versions in a real MLflow store: registered once, promoted only when better, loadable anywhere."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dml.config import GateConfig
from dml.data.schema import SCHEMA_VERSION
from dml.errors import InvalidSetting, MissingArtifact
from dml.models.package import load_package
from dml.refs import DatasetRef, SplitSize
from dml.registry import catalog, champion, tracking
from dml.registry.connection import connect
from dml.reports import Comparison, Evaluation, Measured, Slice
from dml.settings import tracking_uri
from tests.registry.parts import new_package, new_run, new_version, python


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


def test_the_champion_moves_only_to_a_better_version(store):
    gate = GateConfig(min_gain=0.01)
    first = new_version(store, "gated", 1, 0.50)
    assert champion.apply_gate(store, first, gate, None).promoted

    worse = new_version(store, "gated", 2, 0.505)
    judged = champion.apply_gate(store, worse, gate, {"recall_at_1": 0.50})
    assert judged.alias == "challenger"
    assert "0.5050 against the champion's 0.5000" in judged.reason
    assert catalog.find_champion(store, "gated").version == first.version

    better = new_version(store, "gated", 3, 0.52)
    assert champion.apply_gate(store, better, gate, {"recall_at_1": 0.50}).promoted
    model = catalog.find_model(store, "gated")
    assert (model.version, model.package) == (better.version, better.package)
    assert catalog.find_model(store, f"gated/{first.version}").package == first.package
    assert [model.version for model in catalog.list_models(store) if model.name == "gated"] == [
        3,
        2,
        1,
    ]


def test_a_gain_within_noise_does_not_move_the_champion(store):
    gate = GateConfig(confidence=0.95)
    first = new_version(store, "sure", 1, 0.50)
    assert champion.apply_gate(store, first, gate, None).promoted

    better = new_version(store, "sure", 2, 0.52)
    with pytest.raises(ValueError, match="comparison"):
        champion.apply_gate(store, better, gate, {"recall_at_1": 0.50})
    compared = {"metric": "recall_at_1", "gain": 0.02, "num_queries": 60, "num_classes": 5}
    luck = Comparison(low=-0.03, high=0.07, p_value=0.2, **compared)
    judged = champion.apply_gate(store, better, gate, {"recall_at_1": 0.50}, luck)
    assert judged.alias == "challenger"
    assert "[-0.0300, +0.0700] on 60 queries of 5 classes, p 0.2000 (must be at most 0.05)" in judged.reason

    sure = Comparison(low=0.01, high=0.03, p_value=0.04, **compared)
    assert champion.apply_gate(store, better, gate, {"recall_at_1": 0.50}, sure).promoted


def test_registering_the_same_package_again_adds_no_version(store):
    first = new_version(store, "once", 1, 0.5)
    again = new_version(store, "once", 1, 0.5)
    assert again == first


def test_a_missing_model_is_reported_with_the_existing_ones(store):
    with pytest.raises(MissingArtifact, match="no-such-model"):
        catalog.find_model(store, "no-such-model")


def test_a_gate_on_an_unmeasured_metric_is_refused(store):
    version = new_version(store, "unmeasured", 1, 0.5)
    with pytest.raises(InvalidSetting, match="recall_at_1"):
        champion.apply_gate(store, version, GateConfig(metric="recal"), None)


def test_a_killed_run_is_continued_and_a_failed_one_is_marked(store):
    def start():
        return tracking.start_run(store, experiment="runs", identity="same", params={"a": {"b": 1}})

    run = start()
    with pytest.raises(RuntimeError, match="boom"), run.recording():
        raise RuntimeError("boom")
    client = connect(tracking_uri(store))
    assert client.get_run(run.id).info.status == "FAILED"
    assert start() == run
    run.log_metrics({"loss": 0.5}, step=3)
    with run.recording():
        pass
    finished = client.get_run(run.id)
    assert finished.info.status == "FINISHED"
    assert finished.data.params == {"a.b": "1"}
    assert finished.data.metrics == {"loss": 0.5}


def test_an_evaluation_is_logged_under_valid_and_distinct_names(store):
    whole = {"recall_at_1": Measured(value=0.5, low=0.4, high=0.6), "nmi": Measured(value=0.7)}
    values = ["low/er", "low?er", "missing", None, "..."]
    slices = [
        Slice(attribute="shelf", value=value, num_queries=n, metrics={"map_at_r": Measured(value=n / 10)})
        for n, value in enumerate(values)
    ]
    run = new_run(store, "evaluated", "evaluated")
    run.log_evaluation(Evaluation(metrics=whole, slices=slices))
    names = ["low_er", "low_er_", "missing", "missing_", "_"]
    assert connect(tracking_uri(store)).get_run(run.id).data.metrics == {
        "recall_at_1": 0.5,
        "recall_at_1.low": 0.4,
        "recall_at_1.high": 0.6,
        "nmi": 0.7,
        **{f"shelf/{name}/map_at_r": n / 10 for n, name in enumerate(names)},
        **{f"shelf/{name}/num_queries": n for n, name in enumerate(names)},
    }


def test_mlflow_loads_the_champion_in_a_process_without_flows(store, tmp_path):
    version = new_version(store, "loadable", 5, 0.5)
    champion.apply_gate(store, version, GateConfig(), None)
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)).save(out, "PNG")
    (tmp_path / "query.png").write_bytes(out.getvalue())
    code = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/loadable@champion")
image = open(sys.argv[2], "rb").read()
embeddings = model.predict(pd.DataFrame({"image": [image, image]}))
assert "flows" not in sys.modules and "dml.training" not in sys.modules and "prefect" not in sys.modules
print(json.dumps({"embeddings": embeddings.tolist(), "signature": model.metadata.signature.to_dict()}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tracking_uri(store), str(tmp_path / "query.png")],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    expected = load_package(version.package.uri).embed([out.getvalue()])
    np.testing.assert_allclose(answer["embeddings"], np.repeat(expected, 2, axis=0), atol=1e-6)
    assert '"binary"' in answer["signature"]["inputs"]
    assert "float32" in answer["signature"]["outputs"]


def test_registering_restores_the_environment(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    new_version(store, "tidy", 6, 0.5)
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:////elsewhere.db"
    assert "MLFLOW_REGISTRY_URI" not in os.environ


def test_foreign_and_damaged_versions_in_a_shared_mlflow_are_left_out_with_a_warning(tmp_path, caplog):
    store = str(tmp_path)
    versions = [new_version(store, "shared", seed, 0.5) for seed in (1, 2, 3, 4)]
    client = connect(tracking_uri(store))
    for name in ("bob's model", 'x" or 1=1', "Shop", "foreign"):
        client.create_registered_model(name)
    run = client.get_model_version("shared", "1").run_id
    client.create_model_version("foreign", "s3://elsewhere/model", run)
    client.set_model_version_tag("shared", "2", "dml.package", "{not json")
    client.set_model_version_tag("shared", "3", "dml.metrics", '["no", "mapping"]')
    client.delete_model_version_tag("shared", "4", "dml.package")

    listing = catalog.read_registry(store)
    assert [str(model) for model in listing.models] == ["shared/1"]
    assert sorted(listing.foreign) == ["Shop", "bob's model", "foreign", "shared/4", 'x" or 1=1']
    for version in ("2", "3"):
        assert f"Version {version} of model shared has damaged tags" in caplog.text
    assert catalog.find_model(store, "shared/1").package == versions[0].package
    for name in ("shared/2", "foreign", "shared@unknown", "shared/x", "shared"):
        with pytest.raises(MissingArtifact, match="shared"):
            catalog.find_model(store, name)
    for name in ("bob's model", "' OR 1=1 --", "", "@champion", "/1"):
        with pytest.raises(InvalidSetting):
            catalog.find_model(store, name)


@pytest.fixture
def foreign_champion(tmp_path):
    """A store whose alias `champion` is on version 2, which dml did not make."""
    store = str(tmp_path / "store")
    first = new_version(store, "shop", 1, 0.5)
    champion.apply_gate(store, first, GateConfig(), None)
    client = connect(tracking_uri(store))
    run = client.get_model_version("shop", "1").run_id
    client.create_model_version("shop", "s3://elsewhere/model", run)
    client.set_registered_model_alias("shop", "champion", "2")
    return store


def test_the_gate_does_not_move_an_alias_from_a_foreign_version(foreign_champion):
    store = foreign_champion
    judged = champion.apply_gate(store, new_version(store, "shop", 3, 0.9), GateConfig(), None)
    assert judged.alias == "challenger"
    assert "champion is on version 2, which dml did not make" in judged.reason
    assert "dml rollback model shop/3" in judged.reason
    client = connect(tracking_uri(store))
    assert catalog.alias_version(client, "shop", "champion") == "2"
    with pytest.raises(MissingArtifact, match="no champion: the alias is on version 2, which dml did not"):
        catalog.find_model(store, "shop")
    assert catalog.read_registry(store).foreign == ["shop/2"]
    assert str(champion.rollback_champion(store, "shop/3")) == "shop/3"


def test_a_version_registered_but_not_gated_is_reported_with_its_remedy(tmp_path):
    store = str(tmp_path)
    version = new_version(store, "shop", 1, 0.5)
    (listed,) = catalog.list_models(store)
    assert (listed.alias, listed.reason) == (None, catalog.UNJUDGED)
    with pytest.raises(
        MissingArtifact, match=r"shop/1 \(not judged\).*finish the training.*the same training again"
    ):
        catalog.find_model(store, "shop")
    champion.apply_gate(store, version, GateConfig(), None)
    assert catalog.find_model(store, "shop").reason == "first champion: recall_at_1 0.5000"


@pytest.mark.parametrize("metrics", [None, {"recall_at_1": 0.1}])
def test_a_champion_made_meanwhile_is_not_replaced_without_a_comparison(tmp_path, metrics):
    store = str(tmp_path)
    other, new = new_version(store, "shop", 1, 0.9), new_version(store, "shop", 2, 0.5)
    champion.apply_gate(store, other, GateConfig(), None)
    with pytest.raises(champion.ChampionMoved, match="shop/1 became champion while shop/2 was evaluated"):
        champion.apply_gate(store, new, GateConfig(), metrics, against=7)
    assert catalog.find_champion(store, "shop").version == 1


def test_the_same_training_run_twice_at_once_gives_one_champion_and_no_challenger(tmp_path):
    store = str(tmp_path)
    version = new_version(store, "shop", 1, 0.5)
    first = champion.apply_gate(store, version, GateConfig(), None)
    second = champion.apply_gate(store, version, GateConfig(), {"recall_at_1": 0.5}, against=1)
    assert (second.alias, second.reason) == (first.alias, first.reason) == ("champion", first.reason)
    assert catalog.alias_version(connect(tracking_uri(store)), "shop", "challenger") is None


def test_a_deleted_experiment_is_restored_with_its_runs(store):
    before = new_run(store, "deleted", "same")
    client = connect(tracking_uri(store))
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    assert new_run(store, "deleted", "same") == before
    assert client.get_experiment_by_name("deleted").lifecycle_stage == "active"


def test_parameters_that_a_killed_process_did_not_log_are_logged_later(store):
    client = connect(tracking_uri(store))
    experiment = client.create_experiment("half")
    killed = client.create_run(experiment, tags={tracking.RUN_TAG: "same"})
    client.log_param(killed.info.run_id, "a.b", "1")
    params = {"a": {"b": 2, "c": 3}, **{f"p{number}": number for number in range(250)}}
    run = tracking.start_run(store, experiment="half", identity="same", params=params)
    assert run.id == killed.info.run_id
    logged = client.get_run(run.id).data.params
    assert (logged["a.b"], logged["a.c"], len(logged)) == ("1", "3", 252)


def test_a_metric_logged_twice_is_recorded_once(store):
    run = new_run(store, "metrics", "same")
    for metrics in ({"recall_at_1": 0.5}, {"recall_at_1": 0.5, "nmi": 0.25}, {"recall_at_1": 0.75}):
        run.log_metrics(metrics)
    client = connect(tracking_uri(store))
    assert [entry.value for entry in client.get_metric_history(run.id, "recall_at_1")] == [0.5, 0.75]
    assert len(client.get_metric_history(run.id, "nmi")) == 1


BASELINES = {"raw pixels": {"recall_at_1": 0.975}, "before training": {"recall_at_1": 0.25}}


def test_the_reason_notes_a_first_champion_below_raw_pixels(store):
    first = new_version(store, "poor", 1, 0.94)
    judged = champion.apply_gate(store, first, GateConfig(), None, baselines=BASELINES)
    assert judged.promoted
    assert "worse than comparing pixels: recall_at_1 0.940 against 0.975" in judged.reason
    assert catalog.find_model(store, "poor").reason == judged.reason


@pytest.mark.parametrize(
    ("at_least", "passes"), [("raw_pixels", False), ("before_training", True), (0.95, False), (0.94, True)]
)
def test_the_gate_refuses_a_version_below_at_least(store, at_least, passes):
    name = f"floor-{at_least}".replace("_", "-")
    judged = champion.apply_gate(
        store, new_version(store, name, 1, 0.94), GateConfig(at_least=at_least), None, baselines=BASELINES
    )
    assert judged.promoted == passes
    assert ("worse than comparing pixels" if passes else "0.9400 is below gate.at_least") in judged.reason
    assert ("first champion" in judged.reason) == passes
    assert (catalog.find_champion(store, name) is not None) == passes


def test_an_unevaluated_floor_and_a_nan_metric_do_not_pass(store):
    version = new_version(store, "no-number", 1, float("nan"))
    with pytest.raises(InvalidSetting, match="at_least"):
        champion.apply_gate(store, version, GateConfig(at_least="raw_pixels"), None)
    judged = champion.apply_gate(store, version, GateConfig(), None)
    assert not judged.promoted
    assert "must be a number" in judged.reason


def test_mlflows_pages_show_a_versions_dataset_metrics_and_loading_code(tmp_path):
    store = str(tmp_path)
    splits = {"train": SplitSize(rows=6, classes=2), "test": SplitSize(rows=4, classes=2)}
    dataset = DatasetRef(
        uri=f"{store}/datasets/shop/0123",
        fingerprint="0123456789abcdef",
        name="shop",
        rows=10,
        classes=4,
        splits=splits,
        quarantined=0,
        schema_version=SCHEMA_VERSION,
    )
    run = tracking.start_run(
        store, experiment="shop", identity="i", params={}, name="smoke on shop, margin", dataset=dataset
    )
    package = new_package(store, 1).model_copy(update={"dataset": dataset})
    with run.recording():
        model = catalog.register(store, run, "shop", package, {"recall_at_1": 0.94}, BASELINES)

    client = connect(tracking_uri(store))
    version = client.get_model_version("shop", "1")
    for words in (
        f"Trained on `shop@{dataset.version}`: 10 images of 4 classes",
        "| raw pixels | 0.9750 |",
        "It is worse than comparing pixels: recall_at_1 0.940 against 0.975.",
        'mlflow.pyfunc.load_model("models:/shop/1")',
    ):
        assert words in version.description
    assert 'load_model("models:/shop@champion")' in client.get_registered_model("shop").description
    logged = client.get_run(run.id)
    assert logged.info.run_name == "smoke on shop, margin"
    assert logged.data.tags["mlflow.note.content"] == version.description
    assert {"mlflow.source.git.commit", "mlflow.user"} <= logged.data.tags.keys()
    (dataset_input,) = logged.inputs.dataset_inputs
    assert (dataset_input.dataset.name, dataset_input.dataset.digest) == ("shop", dataset.version)
    assert str(model) == "shop/1"


def test_registering_prints_no_warning(tmp_path):
    code = """
import sys, warnings
from tests.registry.parts import new_version
warnings.simplefilter("default")
new_version(sys.argv[1], "quiet", 1, 0.5)
"""
    process = python(code, str(tmp_path))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "input example was not" not in stderr
    assert "WARNING" not in stderr

"""Model versions in a real MLflow store: registered once, promoted only when better, loadable anywhere."""

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dml.config import EncoderConfig, GateConfig, PreprocessingConfig
from dml.errors import InvalidSetting, MissingArtifact
from dml.models.encoder import Encoder
from dml.models.package import load_package, save_package
from dml.refs import Comparison
from dml.registry import catalog, tracking

GREY = PreprocessingConfig(color="L", resize=28, crop=28, mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def tracking_uri(store):
    return f"sqlite:///{store}/mlflow.db"


def test_runs_started_at_once_share_a_new_database_and_experiment(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def start(identity: str) -> tracking.Run:
        return tracking.start_run(
            uri, experiment="grid", identity=identity, params={}, name=f"cell {identity}"
        )

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(start, "abcda"))
    assert runs[0] == runs[4], "the same identity continues the same run"
    client = tracking.connect(uri)
    found = client.search_runs([client.get_experiment_by_name("grid").experiment_id])
    assert sorted(run.info.run_name for run in found) == ["cell a", "cell b", "cell c", "cell d"]


def new_version(store: str, tracking_uri: str, name: str, seed: int, recall: float):
    run = tracking.start_run(
        tracking_uri,
        experiment=name,
        identity=f"{name}-{seed}",
        params={"seed": seed, "encoder": {"dim": 16}},
        artifact_root=f"{store}/mlflow-artifacts",
    )
    package = save_package(store, Encoder(EncoderConfig(dim=16), channels=1, seed=seed), GREY)
    with run.recording():
        return catalog.register(run, name, package, {"recall_at_1": recall})


def test_the_champion_moves_only_to_a_better_version(store, tracking_uri):
    gate = GateConfig(min_gain=0.01)
    first = new_version(store, tracking_uri, "gated", 1, 0.50)
    assert catalog.judge(tracking_uri, first, gate, None).promoted

    worse = new_version(store, tracking_uri, "gated", 2, 0.505)
    judged = catalog.judge(tracking_uri, worse, gate, {"recall_at_1": 0.50})
    assert judged.alias == "challenger"
    assert "0.5050 against the champion's 0.5000" in judged.reason
    assert catalog.find_champion(tracking_uri, "gated").version == first.version

    better = new_version(store, tracking_uri, "gated", 3, 0.52)
    assert catalog.judge(tracking_uri, better, gate, {"recall_at_1": 0.50}).promoted
    champion = catalog.find_model(tracking_uri, "gated")
    assert (champion.version, champion.package) == (better.version, better.package)
    assert catalog.find_model(tracking_uri, f"gated/{first.version}").package == first.package
    assert [model.version for model in catalog.list_models(tracking_uri) if model.name == "gated"] == [
        3,
        2,
        1,
    ]


def test_a_gain_within_noise_does_not_move_the_champion(store, tracking_uri):
    gate = GateConfig(confidence=0.95)
    first = new_version(store, tracking_uri, "sure", 1, 0.50)
    assert catalog.judge(tracking_uri, first, gate, None).promoted

    better = new_version(store, tracking_uri, "sure", 2, 0.52)
    with pytest.raises(ValueError, match="comparison"):
        catalog.judge(tracking_uri, better, gate, {"recall_at_1": 0.50})
    compared = {"metric": "recall_at_1", "gain": 0.02, "num_queries": 60, "num_classes": 5}
    luck = Comparison(low=-0.03, high=0.07, p_value=0.2, **compared)
    judged = catalog.judge(tracking_uri, better, gate, {"recall_at_1": 0.50}, luck)
    assert judged.alias == "challenger"
    assert "[-0.0300, +0.0700] on 60 queries of 5 classes, p 0.2000 (must be at most 0.05)" in judged.reason

    sure = Comparison(low=0.01, high=0.03, p_value=0.04, **compared)
    assert catalog.judge(tracking_uri, better, gate, {"recall_at_1": 0.50}, sure).promoted


def test_registering_the_same_package_again_adds_no_version(store, tracking_uri):
    first = new_version(store, tracking_uri, "once", 1, 0.5)
    again = new_version(store, tracking_uri, "once", 1, 0.5)
    assert again == first


def test_a_model_that_is_not_there_is_named_with_those_that_are(tracking_uri):
    with pytest.raises(MissingArtifact, match="no-such-model"):
        catalog.find_model(tracking_uri, "no-such-model")


def test_a_gate_on_a_metric_nobody_measured_is_refused(store, tracking_uri):
    version = new_version(store, tracking_uri, "unmeasured", 1, 0.5)
    with pytest.raises(InvalidSetting, match="recall_at_1"):
        catalog.judge(tracking_uri, version, GateConfig(metric="recal"), None)


def test_a_killed_run_is_continued_and_a_failed_one_is_marked(tracking_uri):
    def start():
        return tracking.start_run(tracking_uri, experiment="runs", identity="same", params={"a": {"b": 1}})

    run = start()
    with pytest.raises(RuntimeError, match="boom"), run.recording():
        raise RuntimeError("boom")
    client = tracking.connect(tracking_uri)
    assert client.get_run(run.id).info.status == "FAILED"
    assert start() == run
    run.log_metrics({"loss": 0.5}, step=3)
    with run.recording():
        pass
    finished = client.get_run(run.id)
    assert finished.info.status == "FINISHED"
    assert finished.data.params == {"a.b": "1"}
    assert finished.data.metrics == {"loss": 0.5}


def test_mlflow_loads_the_champion_in_a_process_that_knows_no_flows(store, tracking_uri, tmp_path):
    version = new_version(store, tracking_uri, "loadable", 5, 0.5)
    catalog.judge(tracking_uri, version, GateConfig(), None)
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
        [sys.executable, "-c", code, tracking_uri, str(tmp_path / "query.png")],
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


def test_registering_leaves_the_environment_as_it_was(store, tracking_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    new_version(store, tracking_uri, "tidy", 6, 0.5)
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:////elsewhere.db"
    assert "MLFLOW_REGISTRY_URI" not in os.environ

"""The training curves of a model version are those of its run, and pictures are attached to it."""

import pytest
from mlflow.cli import gc

from dml.refs import ModelRef
from dml.registry import catalog
from dml.registry.connection import connect
from dml.registry.history import attach_pictures, curves_of_run, training_curves
from dml.registry.tracking import Run
from dml.settings import tracking_uri
from tests.registry.parts import Step, new_package, new_run, new_version

LATER = 4_000_000_000_000  # ms


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def run(store) -> Run:
    """Two steps, the second of which was logged again from two other machines."""
    run = new_run(store, "shop", "shop")
    with run.recording():
        for step in (2, 4):
            run(Step(step, loss=1 / step, rate=0.1, validation_recall_at_1=0.5))
    for loss, timestamp in ((0.75, LATER), (0.875, LATER - 1)):
        connect(run.tracking_uri).log_metric(run.id, "loss", loss, timestamp=timestamp, step=4)
    return run


@pytest.fixture(scope="module")
def model(store, run) -> ModelRef:
    return catalog.register(store, run, "shop", new_package(store, 1), {"recall_at_1": 0.5})


CURVES = {"loss": [(2, 0.5), (4, 0.75)], "validation_recall_at_1": [(2, 0.5), (4, 0.5)]}


def test_curves_are_the_loss_and_validation_metrics_and_a_repeated_step_has_its_latest_value(
    store, run, model
):
    assert training_curves(store, model) == curves_of_run(run) == CURVES


def test_pictures_are_attached_to_the_run(store, run, model):
    assert attach_pictures(store, model, {"map.png": b"png", "table.csv": b"a,b"}) == ["map.png", "table.csv"]
    names = {file.path for file in connect(run.tracking_uri).list_artifacts(run.id, "pictures")}
    assert names == {"pictures/map.png", "pictures/table.csv"}


def test_a_model_whose_run_was_removed_has_no_curves_and_gets_no_pictures(tmp_path, monkeypatch):
    store = str(tmp_path / "store")
    model = new_version(store, "shop", 1, 0.5)
    run_id = connect(tracking_uri(store)).get_model_version("shop", "1").run_id
    connect(tracking_uri(store)).delete_run(run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(store))
    gc.main(["--backend-store-uri", tracking_uri(store), "--run-ids", run_id], standalone_mode=False)
    assert training_curves(store, model) == {}
    assert attach_pictures(store, model, {"map.png": b"png"}) == []

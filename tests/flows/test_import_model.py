"""A network from elsewhere is registered, judged, compared, indexed and searched like one trained here."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from dml.config import EvaluationConfig, ReportConfig
from dml.data.dataset import read_images
from dml.errors import InvalidSetting, MissingArtifact
from dml.models.package import load_package
from dml.registry.catalog import find_model
from dml.registry.connection import as_default
from dml.serving.searcher import Searcher
from dml.settings import tracking_uri
from flows.evaluate import evaluate_flow
from flows.import_model import import_model_flow
from flows.index import index_flow
from flows.report import report_flow
from tests.embedding.parts import make_dataset

pytestmark = pytest.mark.slow  # MLflow takes its time

TINY = "test_vit.r160_in1k"


def weights(folder, seed):
    torch.manual_seed(seed)
    save_file(timm.create_model(TINY).state_dict(), folder / f"{seed}.safetensors")
    return str(folder / f"{seed}.safetensors")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with a dataset, and two imported models of its name."""
    folder = tmp_path_factory.mktemp("import")
    store = str(folder / "store")
    dataset = make_dataset(folder / "images", store)
    models = [
        import_model_flow.fn(
            f"timm:{TINY}", "shelves", "shelves", weights(folder, seed), store=store, license="MIT"
        )
        for seed in (0, 1)
    ]
    return store, dataset, models, folder


def test_the_first_is_champion_and_the_next_only_if_it_is_better(world):
    _, _, (first, second), _ = world
    assert first.promoted
    gain = second.metrics["recall_at_1"] - first.metrics["recall_at_1"]
    assert second.promoted == (gain > 0)
    assert "against the champion's" in second.reason


def test_what_is_registered_is_what_an_evaluation_measures(world):
    store, _, (first, _), _ = world
    report = evaluate_flow.fn(str(first), "shelves", EvaluationConfig(), store)
    assert report.metrics == first.metrics
    assert [row["embedding"] for row in report.table()] == ["raw pixels", f"timm:{TINY}"]


def test_the_same_import_gives_the_same_version(world):
    store, _, (first, _), folder = world
    again = import_model_flow.fn(f"timm:{TINY}", "shelves", "shelves", weights(folder, 0), store=store)
    assert again.version == first.version


def test_an_image_finds_itself_in_an_index_of_it(world):
    store, dataset, (first, _), _ = world
    index_flow.fn("shelves", str(first), "shelves", store=store)
    (image,) = read_images(dataset, [7])
    (answers,) = Searcher.open(store, "shelves").search([image], k=1)
    assert answers.answers[0].similarity == pytest.approx(1, abs=1e-5)


def test_two_of_them_are_compared_on_one_page(world):
    store, _, (first, second), _ = world
    report = report_flow.fn(str(first), "shelves", ReportConfig(), store, str(second))
    assert str(second) in report.title


def test_mlflow_loads_it(world):
    import mlflow
    import pandas as pd

    store, dataset, (first, _), _ = world
    with as_default(tracking_uri(store)):
        loaded = mlflow.pyfunc.load_model(f"models:/{first}")
    images = read_images(dataset, [0, 1])
    expected = load_package(first.package.uri).embed(images)
    np.testing.assert_allclose(loaded.predict(pd.DataFrame({"image": images})), expected, atol=1e-5)


def test_its_source_and_license_are_in_the_registry(world):
    store, _, (first, _), _ = world
    package = find_model(store, str(first)).package
    assert (package.source, package.license) == (f"timm:{TINY}", "MIT")


def test_without_a_dataset_to_evaluate_on_it_is_used_by_its_version_alone(world):
    store, _, _, folder = world
    model = import_model_flow.fn(f"timm:{TINY}", "tiny", weights=weights(folder, 0), store=store)
    assert (model.alias, model.metrics) == (None, {})
    assert find_model(store, "tiny/1").reason.startswith("not evaluated: no dataset was named")
    with pytest.raises(MissingArtifact, match="tiny has no champion"):
        find_model(store, "tiny")


def test_a_name_that_cannot_be_is_refused_before_anything_is_read(world):
    with pytest.raises(InvalidSetting, match="must start with a letter"):
        import_model_flow.fn("timm:nothing", "No Name", store=world[0])

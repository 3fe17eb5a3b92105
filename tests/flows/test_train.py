"""A trained model belongs to its dataset: what is judged on the same images competes, nothing else does."""

import shutil
from pathlib import Path

import pytest

from dml.config import EvaluationConfig, IngestConfig, NoSplit
from dml.data.dataset import find_dataset
from dml.errors import DmlError, InvalidData, InvalidSetting, MissingArtifact
from dml.registry.catalog import list_models
from dml.registry.tracking import connect
from dml.settings import tracking_uri
from flows.evaluate import evaluate_flow
from flows.ingest import ingest_flow
from flows.report import report_flow
from flows.train import train_flow

SETTINGS = ["evaluation.baselines=false", "evaluation.nmi=false", "training.num_steps=1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("store"))
    for name, classes in {"shop": 24, "photos": 26}.items():
        ingest_flow.fn(IngestConfig(name=name, source=f"glyphs:classes={classes},per_class=6"), folder)
    return folder


@pytest.mark.slow
def test_two_datasets_trained_alike_are_two_models_with_a_champion_each(store):
    trained = {name: train_flow.fn(name, "smoke", SETTINGS, store=store).model for name in ("shop", "photos")}
    assert {name: (str(model), model.alias) for name, model in trained.items()} == {
        "shop": ("shop/1", "champion"),
        "photos": ("photos/1", "champion"),
    }
    client = connect(tracking_uri(store))
    assert {"shop", "photos"} <= {experiment.name for experiment in client.search_experiments()}


def test_a_run_shows_what_it_learnt_from_and_pictures_of_what_it_learnt(store):
    model = train_flow.fn("shop", "smoke", SETTINGS, store=store).model
    client = connect(tracking_uri(store))
    run = client.get_run(client.get_model_version("shop", str(model.version)).run_id)
    assert run.info.run_name.startswith("smoke on shop, multi_similarity, 20")
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["shop"]
    pictures = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "pictures")}
    assert pictures >= {"answers.png", "failures.png", "similarities.png", "roc.png", "thresholds.csv"}


def test_another_name_makes_another_model_of_the_same_dataset(store):
    named = train_flow.fn("shop", "smoke", SETTINGS, store=store, name="shop-small").model
    assert (str(named), named.alias) == ("shop-small/1", "champion")
    assert named in list_models(store)


@pytest.mark.slow
def test_a_missing_champion_is_named_with_its_remedies(store):
    first = train_flow.fn("shop", "smoke", SETTINGS, store=store, name="lost").model
    assert first.promoted
    away = Path(first.package.uri).rename(Path(store) / "away")
    for made_of_it in (Path(store) / "embeddings").glob(f"{first.package.version}-*"):
        shutil.rmtree(made_of_it)
    other = [*SETTINGS, "training.num_steps=2"]
    with pytest.raises(MissingArtifact, match=r"lost/2 must be compared .* champion lost/1.*model lost/2"):
        train_flow.fn("shop", "smoke", other, store=store, name="lost")
    away.rename(first.package.uri)
    assert train_flow.fn("shop", "smoke", other, store=store, name="lost").model.alias is not None


@pytest.mark.parametrize("name", ["bob's model", "../up", "Shop", "a/b", "x' OR 1=1 --"])
def test_a_name_that_cannot_be_a_models_is_refused_before_training(store, name):
    with pytest.raises(InvalidSetting, match="must start with a letter"):
        train_flow.fn("shop", "smoke", SETTINGS, store=store, name=name)


@pytest.fixture(scope="module")
def unsplit(store):
    """A dataset that is all for training, and one of other classes to judge on."""
    ingest_flow.fn(IngestConfig(name="all", source="glyphs:classes=20,per_class=4", split=NoSplit()), store)
    return store


@pytest.mark.slow
def test_one_dataset_is_trained_on_and_another_evaluated(unsplit):
    report = train_flow.fn("all", "smoke", SETTINGS, store=unsplit, test_dataset="photos")
    assert report.evaluation.dataset == find_dataset(unsplit, "photos")
    assert report.trained.package.dataset == find_dataset(unsplit, "all")
    assert report.model.alias == "champion"
    again = train_flow.fn("all", "smoke", [*SETTINGS, "seed=3"], store=unsplit, test_dataset="shop")
    champion = evaluate_flow.fn("all/1", "shop", EvaluationConfig(baselines=False, nmi=False), unsplit)
    assert f"the champion's {champion.metrics['recall_at_1']:.4f}" in again.model.reason


@pytest.mark.parametrize(
    ("dataset", "settings", "says"),
    [
        ("all", [], "has 0 classes"),
        ("lone", [], "at least one query with another item"),
        ("shop", ["sampler.classes_per_batch=200"], "200"),
        ("shop", ["evaluation.role_attribute=role"], "'role'"),
        ("shop", ["evaluation.few_shot.ways=20"], "20 classes"),
    ],
)
def test_what_cannot_be_trained_or_evaluated_is_refused_before_a_run_begins(unsplit, dataset, settings, says):
    ingest_flow.fn(IngestConfig(name="lone", source="glyphs:classes=40,per_class=1"), unsplit)
    client = connect(tracking_uri(unsplit))
    before = [experiment.name for experiment in client.search_experiments()]
    with pytest.raises(DmlError, match=says):
        train_flow.fn(dataset, "smoke", [*SETTINGS, *settings], store=unsplit, name="refused")
    assert [experiment.name for experiment in client.search_experiments()] == before


def test_a_split_without_any_positive_is_refused_by_evaluation_and_report(unsplit):
    train_flow.fn("shop", "smoke", SETTINGS, store=unsplit)
    with pytest.raises(InvalidData, match="has 0 classes"):
        evaluate_flow.fn("shop", "all", store=unsplit)
    with pytest.raises(InvalidData, match="has 0 classes"):
        report_flow.fn("shop", "all", store=unsplit)


@pytest.mark.slow
def test_a_registered_model_is_the_start_of_another_that_must_be_as_good(store):
    first = train_flow.fn("shop", "smoke", SETTINGS, store=store, name="start").model
    settings = ["evaluation.nmi=false", "training.num_steps=1"]
    tuned = train_flow.fn(
        "shop", "smoke", settings, store=store, name="tuned", from_model="start", tune="lora"
    )
    assert tuned.trained.package.initial == first.package
    start = tuned.evaluation.baselines["before training"].metrics["recall_at_1"]
    assert start.value == first.metrics["recall_at_1"]
    worse = tuned.model.metrics["recall_at_1"] < first.metrics["recall_at_1"]
    assert (tuned.model.alias == "champion") != worse
    chosen = train_flow.fn("shop", "auto", settings, store=store, name="tuned", from_model=str(tuned.model))
    assert "it starts from tuned/1 and trains all of it" in chosen.reason


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tune": "lora"}, "no model. Name it with --from MODEL"),
        ({"from_model": "nothing"}, "'nothing' must be in the registry"),
    ],
)
def test_what_to_start_from_must_be_said_and_be_there(store, given, says):
    with pytest.raises(DmlError, match=says):
        train_flow.fn("shop", "smoke", SETTINGS, store=store, **given)


def test_first_weights_are_named_once(store):
    with pytest.raises(InvalidSetting, match=r"got --from shop/1 and --weights a.pth"):
        train_flow.fn("shop", "smoke", SETTINGS, store=store, from_model="shop/1", weights="a.pth")

"""A trained model belongs to its dataset: what is judged on the same images competes, nothing else does."""

import pytest

from dml.config import IngestConfig
from dml.errors import InvalidSetting
from dml.registry.catalog import list_models
from dml.registry.tracking import connect
from dml.settings import tracking_uri
from flows.ingest import ingest_flow
from flows.train import train_flow

SETTINGS = ["evaluation.baselines=false", "evaluation.nmi=false", "training.num_steps=1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("store"))
    for name, classes in {"shop": 24, "photos": 26}.items():
        ingest_flow.fn(IngestConfig(name=name, source=f"glyphs:classes={classes},per_class=6"), folder)
    return folder


def test_two_datasets_trained_alike_are_two_models_with_a_champion_each(store):
    trained = {name: train_flow.fn(name, "smoke", SETTINGS, store=store).model for name in ("shop", "photos")}
    assert {name: (str(model), model.alias) for name, model in trained.items()} == {
        "shop": ("shop/1", "champion"),
        "photos": ("photos/1", "champion"),
    }
    client = connect(tracking_uri(store))
    assert {"shop", "photos"} <= {experiment.name for experiment in client.search_experiments()}


def test_another_name_makes_another_model_of_the_same_dataset(store):
    named = train_flow.fn("shop", "smoke", SETTINGS, store=store, name="shop-small").model
    assert (str(named), named.alias) == ("shop-small/1", "champion")
    assert named in list_models(tracking_uri(store))


@pytest.mark.parametrize("name", ["bob's model", "../up", "Shop", "a/b", "x' OR 1=1 --"])
def test_a_name_that_cannot_be_a_models_is_refused_before_training(store, name):
    with pytest.raises(InvalidSetting, match="--name"):
        train_flow.fn("shop", "smoke", SETTINGS, store=store, name=name)

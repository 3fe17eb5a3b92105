"""Rollback of the champion, and removal of versions."""

import pytest

from dml.config import GateConfig
from dml.errors import InvalidSetting, MissingArtifact
from dml.registry import catalog
from dml.registry.champion import apply_gate, rollback_champion
from dml.registry.connection import connect
from dml.registry.registered import registered_elsewhere
from dml.registry.removal import remove_model
from dml.settings import tracking_uri
from tests.registry.parts import new_version


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


def test_a_rollback_follows_the_history_of_champions_and_is_recorded(store):
    for seed, recall in ((1, 0.5), (2, 0.4), (3, 0.6), (4, 0.7)):
        version = new_version(store, "shop", seed, recall)
        champion = catalog.find_champion(store, "shop")
        apply_gate(store, version, GateConfig(), champion and champion.metrics)
    assert catalog.find_champion(store, "shop").version == 4
    assert str(rollback_champion(store, "shop")) == "shop/3"
    assert str(rollback_champion(store, "shop")) == "shop/1", "shop/2 never was champion"
    assert catalog.find_champion(store, "shop").version == 1
    assert "rolled back to shop/3" in catalog.find_model(store, "shop/4").reason
    apply_gate(store, catalog.find_model(store, "shop/4"), GateConfig(), {"recall_at_1": 0.5})
    assert catalog.find_champion(store, "shop").version == 1, "training it again does not undo a rollback"
    with pytest.raises(MissingArtifact, match="must have had a champion before"):
        rollback_champion(store, "shop")
    assert str(rollback_champion(store, "shop/4")) == "shop/4"
    with pytest.raises(InvalidSetting, match="already be the champion"):
        rollback_champion(store, "shop/4")

    with pytest.raises(InvalidSetting, match="must not be the champion"):
        remove_model(store, "shop/4")
    assert remove_model(store, "shop/2") == ["shop/2"]
    assert sorted(remove_model(store, "shop")) == ["shop/1", "shop/3", "shop/4"]
    for absent in ("shop", "shop/1", "other"):
        with pytest.raises(MissingArtifact):
            remove_model(store, absent)


def test_in_a_shared_mlflow_versions_of_other_stores_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    new_version(here, "shop", 1, 0.5)
    new_version(there, "shop", 2, 0.5)
    client = connect(tracking_uri(here))
    run = client.get_model_version("shop", "1").run_id
    client.create_model_version("shop", "s3://elsewhere/model", run)
    with pytest.raises(InvalidSetting, match=rf"of this store.*dml rm model shop/2 --store {there}"):
        remove_model(here, "shop/2")
    assert remove_model(here, "shop") == ["shop/1"]
    with pytest.raises(InvalidSetting, match="of this store"):
        remove_model(here, "shop")
    assert remove_model(there, "shop") == ["shop/2"]
    (remaining,) = client.search_model_versions("name = 'shop'")
    assert remaining.source == "s3://elsewhere/model"


def test_a_package_registered_in_another_mlflow_is_noted_until_it_is_removed_there(tmp_path, monkeypatch):
    store = str(tmp_path / "store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    model, damaged = new_version(store, "shop", 1, 0.5), new_version(store, "shop", 2, 0.5)
    connect(tracking_uri(store)).set_model_version_tag("shop", "2", "dml.package", "{not json")
    package, hidden = model.package.uri, damaged.package.uri
    assert sorted(registered_elsewhere(store)) == sorted([package, hidden]), (
        "a package with an unreadable tag is kept"
    )
    for other in (None, f"sqlite:///{tmp_path}/other.db"):
        monkeypatch.delenv("MLFLOW_TRACKING_URI") if other is None else monkeypatch.setenv(
            "MLFLOW_TRACKING_URI", other
        )
        assert sorted(registered_elsewhere(store)) == sorted([package, hidden])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    connect(tracking_uri(store)).delete_model_version("shop", "2")
    assert registered_elsewhere(store) == [package], "removed in MLflow's pages"
    assert remove_model(store, "shop") == ["shop/1"]
    assert registered_elsewhere(store) == []

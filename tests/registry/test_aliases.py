"""A champion is taken back to the one before it; a version that is champion is not removed."""

import pytest

from dml.config import GateConfig
from dml.errors import InvalidSetting, MissingArtifact
from dml.registry import catalog
from dml.registry.aliases import remove_model, rollback_champion
from tests.registry.test_catalog import new_version


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def tracking_uri(store):
    return f"sqlite:///{store}/mlflow.db"


def test_a_rollback_goes_back_through_the_champions_and_says_so(store, tracking_uri):
    for seed, recall in ((1, 0.5), (2, 0.4), (3, 0.6), (4, 0.7)):
        version = new_version(store, tracking_uri, "shop", seed, recall)
        champion = catalog.find_champion(tracking_uri, "shop")
        catalog.judge(tracking_uri, version, GateConfig(), champion and champion.metrics)
    assert catalog.find_champion(tracking_uri, "shop").version == 4
    assert str(rollback_champion(tracking_uri, "shop")) == "shop/3"
    assert str(rollback_champion(tracking_uri, "shop")) == "shop/1", "shop/2 never was champion"
    assert catalog.find_champion(tracking_uri, "shop").version == 1
    assert "taken back" in catalog.find_model(tracking_uri, "shop/4").reason
    with pytest.raises(MissingArtifact, match="must have had a champion before"):
        rollback_champion(tracking_uri, "shop")
    assert str(rollback_champion(tracking_uri, "shop/4")) == "shop/4"
    with pytest.raises(InvalidSetting, match="already"):
        rollback_champion(tracking_uri, "shop/4")

    with pytest.raises(InvalidSetting, match="must not be the champion"):
        remove_model(tracking_uri, "shop/4")
    assert remove_model(tracking_uri, "shop/2") == ["shop/2"]
    assert sorted(remove_model(tracking_uri, "shop")) == ["shop/1", "shop/3", "shop/4"]
    for absent in ("shop", "shop/1", "other"):
        with pytest.raises(MissingArtifact):
            remove_model(tracking_uri, absent)

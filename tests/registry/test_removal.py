"""A champion is taken back to the one before it; a version that is champion is not removed."""

import pytest

from dml.config import GateConfig
from dml.errors import InvalidSetting, MissingArtifact
from dml.registry import catalog
from dml.registry.champion import judge, rollback_champion
from dml.registry.removal import remove_model
from tests.registry.parts import new_version


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


def test_a_rollback_goes_back_through_the_champions_and_says_so(store):
    for seed, recall in ((1, 0.5), (2, 0.4), (3, 0.6), (4, 0.7)):
        version = new_version(store, "shop", seed, recall)
        champion = catalog.find_champion(store, "shop")
        judge(store, version, GateConfig(), champion and champion.metrics)
    assert catalog.find_champion(store, "shop").version == 4
    assert str(rollback_champion(store, "shop")) == "shop/3"
    assert str(rollback_champion(store, "shop")) == "shop/1", "shop/2 never was champion"
    assert catalog.find_champion(store, "shop").version == 1
    assert "taken back for shop/3" in catalog.find_model(store, "shop/4").reason
    judge(store, catalog.find_model(store, "shop/4"), GateConfig(), {"recall_at_1": 0.5})
    assert catalog.find_champion(store, "shop").version == 1, "training it again does not undo a rollback"
    with pytest.raises(MissingArtifact, match="must have had a champion before"):
        rollback_champion(store, "shop")
    assert str(rollback_champion(store, "shop/4")) == "shop/4"
    with pytest.raises(InvalidSetting, match="already"):
        rollback_champion(store, "shop/4")

    with pytest.raises(InvalidSetting, match="must not be the champion"):
        remove_model(store, "shop/4")
    assert remove_model(store, "shop/2") == ["shop/2"]
    assert sorted(remove_model(store, "shop")) == ["shop/1", "shop/3", "shop/4"]
    for absent in ("shop", "shop/1", "other"):
        with pytest.raises(MissingArtifact):
            remove_model(store, absent)

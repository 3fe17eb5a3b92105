"""How an index asks to be refreshed: from what, when, and what is too little to be its source."""

import pytest

from dml import storage
from dml.config import IndexConfig
from dml.errors import InvalidData, InvalidSetting, MissingArtifact
from dml.retrieval.build import build_index
from dml.retrieval.index import find_index, publish_index
from dml.retrieval.refresh import (
    REFRESH_FILE,
    ask_refresh,
    end_refresh,
    find_refresh,
    names_to_refresh,
    read_refreshes,
    refreshed_from,
    require_most_still_there,
)


@pytest.fixture
def index(tmp_path, embeddings):
    """In a store of its own, made with a model; beside it one made with none."""
    store = str(tmp_path / "store")
    for name, model in (("shelves", "shop/3"), ("plain", "")):
        ref = build_index(store, name, embeddings, IndexConfig(), model=model)
        publish_index(store, ref)
    return store


def test_an_index_is_refreshed_from_the_names_it_was_made_with_unless_it_asks_otherwise(index):
    assert refreshed_from(index, "shelves") == ("shop", "shelves")
    config = ask_refresh(index, "shelves", cron="0 3 * * *", model="other/2", dataset="shelves@v1")
    assert (config.cron, config.timezone) == ("0 3 * * *", "UTC")
    assert refreshed_from(index, "shelves") == ("other/2", "shelves@v1")
    assert find_refresh(index, "shelves") == config
    end_refresh(index, "shelves")
    assert find_refresh(index, "shelves") is None
    assert refreshed_from(index, "shelves") == ("shop", "shelves")


def test_only_those_that_ask_are_refreshed_and_of_damaged_wishes_it_is_said(index):
    assert read_refreshes(index) == ({}, {})
    config = ask_refresh(index, "shelves", cron="0 3 * * *")
    assert names_to_refresh(index) == ["shelves"]
    assert read_refreshes(index) == ({"shelves": config}, {})
    uri = storage.join(index, "indexes", "plain", REFRESH_FILE)
    storage.write_bytes(uri, b'{"cron": 3}')
    asking, damaged = read_refreshes(index)
    assert (asking, list(damaged)) == ({"shelves": config}, ["plain"])
    assert REFRESH_FILE in damaged["plain"]
    with pytest.raises(InvalidData, match="dml schedule plain"):
        find_refresh(index, "plain")


def test_an_index_that_names_no_model_needs_one_to_be_refreshed(index):
    with pytest.raises(InvalidSetting, match="names no model"):
        ask_refresh(index, "plain", cron="0 3 * * *")
    with pytest.raises(InvalidSetting, match="names no model"):
        refreshed_from(index, "plain")
    assert ask_refresh(index, "plain", cron="0 3 * * *", model="shop").model == "shop"


def test_what_is_not_there_or_a_version_cannot_be_refreshed(index):
    version = storage.list_versions(storage.join(index, "indexes", "shelves"))[0]
    with pytest.raises(InvalidSetting, match="must be an index's name"):
        ask_refresh(index, f"shelves@{version}", cron="0 3 * * *")
    with pytest.raises(MissingArtifact):
        end_refresh(index, "other")


@pytest.mark.parametrize(("rows", "enough"), [(60, True), (59, False)])
def test_a_source_of_less_than_half_of_the_items_is_not_made_the_index(index, embeddings, rows, enough):
    ref = find_index(index, "shelves")
    assert ref.rows == 120
    fresh = embeddings.items.model_copy(update={"rows": rows})
    if enough:
        require_most_still_there(ref, fresh)
    else:
        with pytest.raises(InvalidData, match=r"At least 50% of the 120 items .* has 59"):
            require_most_still_there(ref, fresh)
    elsewhere = fresh.model_copy(update={"name": "other"})
    require_most_still_there(ref, elsewhere)

"""A store that is made once, and is not changed by tests that do not say so."""

import pytest

from tests.serving.page.parts import make_dataset, make_index


@pytest.fixture(scope="session")
def looked_at(tmp_path_factory):
    """(store, dataset, index)."""
    folder = tmp_path_factory.mktemp("page")
    store = str(folder / "store")
    dataset = make_dataset(folder / "images", store)
    return store, dataset, make_index(store, dataset)

"""A store that is made once."""

import pytest

from dml.serving.app.settings import ServiceSettings
from tests.serving.app.parts import make_store


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """(store, dataset, index) that no test changes."""
    return make_store(tmp_path_factory.mktemp("served"))


@pytest.fixture
def settings(served):
    return ServiceSettings(store=served[0], threads=1, recall_share=0)

"""Our own index does what every engine does."""

import itertools

import pytest

from dml.retrieval.engines.bundle import BundleEngine
from tests.retrieval.engines.conformance import EngineConformance

_names = (f"index-{number}" for number in itertools.count())


@pytest.fixture
def engine(tmp_path):
    return BundleEngine(str(tmp_path / "store"), next(_names))


@pytest.fixture(scope="module")
def loaded(table, tmp_path_factory):
    engine = BundleEngine(str(tmp_path_factory.mktemp("bundle") / "store"), next(_names))
    engine.load(table)
    return engine


class TestBundle(EngineConformance):
    """The suite, and nothing beside it."""

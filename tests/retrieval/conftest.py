"""One store for the room's tests: a dataset, a package, and the table one makes of the other."""

from pathlib import Path

import pytest

from dml.refs import DatasetRef, EmbeddingsRef, PackageRef
from dml.retrieval.embed import embed
from tests.retrieval.parts import make_dataset, make_package


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def dataset(store: str, tmp_path_factory: pytest.TempPathFactory) -> DatasetRef:
    return make_dataset(Path(tmp_path_factory.mktemp("images")), store)


@pytest.fixture(scope="session")
def package(store: str) -> PackageRef:
    return make_package(store)


@pytest.fixture(scope="session")
def embeddings(store: str, dataset: DatasetRef, package: PackageRef) -> EmbeddingsRef:
    return embed(store, package, dataset)

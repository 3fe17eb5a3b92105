"""The table that every engine is loaded with."""

import numpy as np
import pytest

from dml.embedding.table import read_embeddings
from dml.refs import EmbeddingsRef
from tests.retrieval.engines.conformance import make_table


@pytest.fixture(scope="package")
def table(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingsRef:
    folder = tmp_path_factory.mktemp("engine")
    return make_table(folder, str(folder / "store"))


@pytest.fixture(scope="package")
def vectors(table: EmbeddingsRef) -> np.ndarray:
    return read_embeddings(table).vectors

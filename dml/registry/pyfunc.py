"""How MLflow loads a package: `mlflow.pyfunc.load_model("models:/NAME@champion").predict(images)`.

Nothing is unpickled: MLflow imports this module by name and hands it the folder with the package's files.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidData
from dml.models.package import Package, read_package

if TYPE_CHECKING:
    import pandas as pd


class EmbeddingModel:
    """Image files' bytes in, unit-length embeddings out."""

    def __init__(self, package: Package) -> None:
        self.package = package

    def predict(
        self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Embed a table with a column `image` of encoded images; returns (N, D) float32, unit length."""
        if "image" not in model_input:
            raise InvalidData(
                "The input must have a column 'image' of encoded image files' bytes; got columns "
                f"{list(model_input)}."
            )
        return self.package.embed([bytes(image) for image in model_input["image"]])


def _load_pyfunc(data_path: str) -> EmbeddingModel:
    """MLflow's loader contract: the folder logged as `data_path` in, an object with `predict` out."""
    return EmbeddingModel(read_package(data_path))

"""MLflow pyfunc model of a package: `mlflow.pyfunc.load_model("models:/NAME@champion").predict(images)`.

Nothing is unpickled: MLflow imports this module by name and passes it the folder with the package's files.
"""

import base64
import binascii
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dml.errors import InvalidData
from dml.models.package import Package, read_package

if TYPE_CHECKING:
    import pandas as pd

COLUMN = "image"
_ACCEPTED = "an image file's bytes, the same in base64, a Pillow image, or an array (H, W[, 3]) of uint8"


class EmbeddingModel:
    """Images in, unit-length embeddings out."""

    def __init__(self, package: Package) -> None:
        self.package = package

    def predict(
        self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Embed the images of a table.

        Args:
            model_input: N rows with a column `image`: image files' bytes, the same in base64, Pillow images,
                or arrays (H, W) or (H, W, 3) of uint8.
            params: ignored.

        Returns:
            (N, D) float32, unit length.

        Raises:
            InvalidData: a row is not an image; the message names the row.
        """
        if COLUMN not in model_input:
            raise InvalidData(
                f"The input must have a column {COLUMN!r} of {_ACCEPTED}; got columns {list(model_input)}."
            )
        images = [_encode_image(value, row) for row, value in enumerate(model_input[COLUMN])]
        try:
            return self.package.embed(images)
        except InvalidData:
            for row, image in enumerate(images):
                self._require_prepared(image, row)
            raise

    def _require_prepared(self, image: bytes, row: int) -> None:
        try:
            self.package.prepare(image)
        except InvalidData as error:
            raise InvalidData(f"Row {row}: {error}") from error


def _encode_image(value: Any, row: int) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        try:
            return base64.b64decode(value.partition("base64,")[2] or value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidData(
                f"Row {row} must be {_ACCEPTED}; got a text that is not base64, {value[:40]!r}. "
                "A path is not read: give the file's bytes."
            ) from error
    if isinstance(value, Image.Image | np.ndarray):
        try:
            return _encode_png(value)
        except (TypeError, ValueError, OSError, SystemError) as error:
            got = f"{value.shape} of {value.dtype}" if isinstance(value, np.ndarray) else value.mode
            raise InvalidData(f"Row {row} must be {_ACCEPTED}; got {type(value).__name__} {got}.") from error
    raise InvalidData(f"Row {row} must be {_ACCEPTED}; got {type(value).__name__} {value!r:.40}.")


def _encode_png(value: "Image.Image | NDArray[Any]") -> bytes:
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8:
            raise TypeError(
                f"An array must be uint8, since the range of other types is unknown; got {value.dtype}."
            )
        if value.ndim != 2 and (value.ndim != 3 or value.shape[2] != 3):
            raise ValueError(f"An array must have shape (H, W) or (H, W, 3); got {value.shape}.")
        value = Image.fromarray(value)
    out = io.BytesIO()
    value.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _load_pyfunc(data_path: str) -> EmbeddingModel:
    """MLflow's loader contract: the folder logged as `data_path` in, an object with `predict` out."""
    return EmbeddingModel(read_package(data_path))

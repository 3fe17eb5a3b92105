"""MLflow's `predict`: accepted image types, and errors for other values."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dml.errors import InvalidData
from dml.models.package import load_package
from dml.registry.pyfunc import EmbeddingModel
from tests.registry.parts import new_package

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    package = new_package(str(tmp_path_factory.mktemp("store")), 1)
    return EmbeddingModel(load_package(package.uri))


def column(*values):
    table = pd.DataFrame({"image": pd.Series([None] * len(values), dtype=object)})
    for row, value in enumerate(values):
        table.at[row, "image"] = value
    return table


def test_every_accepted_image_type_gives_the_same_embedding(model):
    content = png(PIXELS)
    text = base64.b64encode(content).decode()
    forms = [content, bytearray(content), memoryview(content), text, f"data:image/png;base64,{text}"]
    embeddings = model.predict(column(*forms, PIXELS, Image.fromarray(PIXELS)))
    assert embeddings.shape == (7, 16)
    np.testing.assert_allclose(embeddings, np.repeat(embeddings[:1], 7, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "NoneType"),
        (float("nan"), "float"),
        (7, "int"),
        ("photos/query.png", "A path is not read"),
        (PIXELS / 255, r"\(40, 30\) of float64"),
        (np.zeros((2, 2, 7), np.uint8), r"\(2, 2, 7\)"),
        (np.zeros((0, 4), np.uint8), ""),
        (np.zeros(8, np.uint8), r"\(8,\)"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (b"", "0 bytes"),
        (b"no image", "no image"),
        (png(PIXELS)[:200], ""),
        ({"bytes": b""}, "dict"),
    ],
    ids=repr,
)
def test_a_value_that_is_not_an_image_is_refused_with_its_row(model, value, message):
    with pytest.raises(InvalidData, match=f"(?s)Row 1.*{message}"):
        model.predict(column(png(PIXELS), value))


def test_a_table_without_the_column_is_refused_with_its_columns(model):
    with pytest.raises(InvalidData, match=r"'image'.*\['picture'\]"):
        model.predict(pd.DataFrame({"picture": [png(PIXELS)]}))


def test_an_image_with_too_many_pixels_is_refused_with_its_row(model):
    with pytest.raises(InvalidData, match=r"Row 0.*pixels"):
        model.predict(column(png(np.zeros((8001, 8001), np.uint8))))

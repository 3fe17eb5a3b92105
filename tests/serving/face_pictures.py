"""A store whose index was embedded by a model that detects faces."""

from pathlib import Path

import numpy as np

from dml.config import IndexConfig, IngestConfig
from dml.data.ingest import ingest
from dml.embedding.embed import embed
from dml.models.external import Options, import_embedder
from dml.refs import DatasetRef, IndexRef, PackageRef
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index
from tests.bright_faces import encoded, picture, write_detector
from tests.models.test_onnx import network

NAME = "people"
PLACES = [(row, column) for row in (0, 2) for column in (0, 2, 4)]


def face(person: int) -> np.ndarray:
    """(32, 32, 3): bright, with the person's own pattern."""
    pattern = np.random.default_rng(person).integers(190, 256, (4, 4, 3), dtype=np.uint8)
    return np.kron(pattern, np.ones((8, 8, 1), np.uint8))


def party(*people: int) -> bytes:
    """A picture with the people's faces, no face at all for none."""
    pixels = picture()
    for (row, column), person in zip(PLACES, people, strict=False):
        pixels[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = face(person)
    return encoded(pixels)


def make_people(folder: Path, *pictures: tuple[str, bytes]) -> tuple[str, DatasetRef, PackageRef]:
    """A store with a dataset of these pictures, by label, and a package that detects."""
    store = str(folder / "store")
    rows = ["image,label,split"]
    for number, (label, content) in enumerate(pictures):
        (folder / f"{number}.png").write_bytes(content)
        rows.append(f"{number}.png,{label},test")
    (folder / "people.csv").write_text("\n".join(rows))
    dataset = ingest(IngestConfig(name=NAME, source=str(folder / "people.csv"), num_workers=1), store)
    address = f"onnx:{network(folder / 'face.onnx')}"
    options = Options(detector=write_detector(folder / "yunet.onnx"))
    return store, dataset, import_embedder(store, address, options)


def publish(store: str, dataset: DatasetRef, package: PackageRef) -> IndexRef:
    ref = build_index(store, NAME, embed(store, package, dataset), IndexConfig(factory="Flat"))
    publish_index(store, ref)
    return ref

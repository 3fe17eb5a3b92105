"""A dataset that its manifest says is as large as a published one, with two images."""

from pathlib import Path

from dml import storage
from dml.bench.published import SIZES
from dml.config import ClassSplit, IngestConfig
from dml.data.dataset import find_dataset
from dml.data.ingest import ingest
from dml.refs import DatasetRef
from tests.data.pictures import picture


def as_published(store: str, folder: Path, family: str, size: tuple[int, int] = (300, 250)) -> DatasetRef:
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        (folder / label / "1.png").write_bytes(picture(ord(label), size))
    config = IngestConfig(name=family, source=str(folder), split=ClassSplit(), num_workers=1)
    made = ingest(config, store)
    manifest = storage.read_manifest(made.uri)
    manifest["ref"]["splits"] = {split: s.model_dump() for split, s in SIZES[family].items()}
    storage.write_manifest(made.uri, manifest)
    return find_dataset(store, family)

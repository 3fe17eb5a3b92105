"""A small real dataset and package, and embeddings tables with given vectors; for the rooms above too."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dml import storage
from dml.config import EncoderConfig, IngestConfig, PreprocessingConfig
from dml.data.dataset import fragments, read_fragment
from dml.data.ingest import ingest
from dml.embedding.table import part_name, seal_table, write_part
from dml.models.encoder import Encoder
from dml.models.package import save_package
from dml.refs import DatasetRef, EmbeddingsRef, PackageRef

GREY = PreprocessingConfig(color="L", resize=28, crop=28, mean=(0.5,), std=(0.5,))
ROWS, ROWS_PER_FRAGMENT = 120, 30


def make_dataset(folder: Path, store: str, *, rows: int = ROWS, first: int = 0) -> DatasetRef:
    """Images number `first` to `first + rows`, ten classes, with attributes of every type, some missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "split", "shelf", "year", "weight", "sold"])
        for i in range(first, first + rows):
            (folder / f"{i:05d}.png").write_bytes(png(i))
            label = i % 10
            shelf = "" if i % 17 == 0 else ["top", "middle", "bottom"][i % 3]
            row = [f"{i:05d}.png", f"class {label}", "train" if label < 5 else "test", shelf]
            writer.writerow([*row, 1990 + i % 40, "" if i % 5 == 0 else i / 8, i % 2 == 0])
    config = IngestConfig(
        name="shelves",
        source=str(folder / "images.csv"),
        rows_per_fragment=ROWS_PER_FRAGMENT,
        num_workers=1,
    )
    return ingest(config, store)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 10), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def make_encoder(*, seed: int = 3, dim: int = 16) -> Encoder:
    return Encoder(EncoderConfig(dim=dim), channels=1, seed=seed)


def make_package(store: str, *, seed: int = 3, dim: int = 16) -> PackageRef:
    return save_package(store, make_encoder(seed=seed, dim=dim), GREY)


@contextmanager
def embedded_in_this_process() -> Iterator[list[int]]:
    """How many images every encoder sees meanwhile, as a list of counts."""
    counts: list[int] = []

    def count(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(module, Encoder) and not module.training:
            counts.append(len(arguments[0]))

    hook = register_module_forward_pre_hook(count)
    try:
        yield counts
    finally:
        hook.remove()


def unit_vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def table_of(
    store: str, package: PackageRef, dataset: DatasetRef, vectors: np.ndarray, *, first_part: int = 0
) -> EmbeddingsRef:
    """A published embeddings table that holds these vectors, whatever the package would say."""
    fingerprint = storage.digest_of("given", vectors.tobytes().hex(), first_part)
    uri = storage.make_folder(storage.join(store, "embeddings", fingerprint[:12]))
    start, parts = 0, {}
    for number, fragment in enumerate(fragments(dataset), start=first_part):
        rows = read_fragment(fragment, ["id", "sha256"])
        part = np.ascontiguousarray(vectors[start : start + len(rows)])
        write_part(storage.join(uri, part_name(number)), rows["id"], rows["sha256"], part)
        start += len(rows)
        parts[part_name(number)] = len(rows)
    ref = EmbeddingsRef(
        uri=uri,
        fingerprint=fingerprint,
        embedder=package,
        items=dataset,
        dim=vectors.shape[1],
        rows=len(vectors),
    )
    seal_table(ref, parts)
    return ref


def turn(table: EmbeddingsRef) -> None:
    """Publish the table again with its parts in the opposite order."""
    parts = storage.read_manifest(table.uri)["parts"]
    storage.delete(storage.join(table.uri, storage.MANIFEST))
    seal_table(table, {part["name"]: part["rows"] for part in reversed(parts)})


def rows_of_fragments(dataset: DatasetRef) -> list[int]:
    return [len(read_fragment(fragment, ["id"])) for fragment in fragments(dataset)]


def ids_of(dataset: DatasetRef) -> list[str]:
    parts = [read_fragment(fragment, ["id"]) for fragment in fragments(dataset)]
    ids: list[str] = pa.concat_tables(parts)["id"].to_pylist()
    return ids

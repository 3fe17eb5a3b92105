"""A published index of people with attributes, vectors whose similarities are exact and often tie."""

from itertools import accumulate
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.embedding.table import cut_table
from dml.refs import IndexRef
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index
from dml.retrieval.shards import LocalShards, Shard, ShardedIndex

ROWS, DIM = 60, 8
REGIONS = ["east", "west", None]


def vectors_of(rows: int, seed: int) -> np.ndarray:
    """(N, 8) with four components of 0.5 or -0.5: of unit length, and products are exact in float32."""
    rng = np.random.default_rng(seed)
    vectors = np.zeros((rows, DIM), np.float32)
    for vector in vectors:
        vector[rng.choice(DIM, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return vectors


def items_of(rows: int, *, first: int = 0) -> list[dict]:
    return [
        {
            "id": f"photo {row}",
            "label": f"person {row % 7}",
            "floor": row % 5,
            "region": REGIONS[row % 3],
            "seen": f"2024-0{1 + row % 4}-01" if row % 4 else None,
        }
        for row in range(first, first + rows)
    ]


_TYPES = {"id": pa.string(), "label": pa.string(), "floor": pa.int64(), "region": pa.string()}
SCHEMA = pa.schema({**_TYPES, "seen": pa.string()})


def publish(
    store: str, folder: Path, name: str, items: list[dict], vectors: np.ndarray, **config
) -> IndexRef:
    """Import, index and publish items with their vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "vectors.npy", vectors)
    parquet.write_table(pa.Table.from_pylist(items, SCHEMA), folder / "items.parquet")
    imported = import_vectors(
        store,
        name,
        folder / "vectors.npy",
        ids=folder / "items.parquet",
        attributes=folder / "items.parquet",
        embedder="given",
        block_bytes=20 * 4 * DIM,
    )
    ref = build_index(store, name, imported.embeddings, IndexConfig(**config))
    publish_index(store, ref)
    return ref


def upload(folder: Path, s3_store: str) -> None:
    """Copy a store on this disk to an empty one on S3."""
    _, _, bucket, prefix = s3_store.split("/")
    client = boto3.client("s3")
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


def open_in_shards(store: str):
    """Opens an index as if it had been built in shards."""

    def open_base(ref: IndexRef):
        parts = cut_table(ref.embeddings, 3)
        starts = accumulate((part.rows for part in parts), initial=0)
        shards = [
            Shard(build_index(store, f"{ref.name}_cut", part, IndexConfig()), first_row=start)
            for part, start in zip(parts, starts, strict=False)
        ]
        return ShardedIndex(ref, LocalShards(shards))

    return open_base

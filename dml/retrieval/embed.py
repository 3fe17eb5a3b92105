"""Embed a whole dataset with one package: one Parquet part per fragment, finished parts never made again.

The table's folder is named by package and dataset. A part's name appears only once it is whole, the manifest
only once every part is there: after any number of crashes the table has exactly one row per sample.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from dml import storage
from dml.cluster import ray_session
from dml.data.dataset import fragments, read_fragment
from dml.data.schema import IMAGE
from dml.errors import IncompatibleArtifact, InvalidData
from dml.models.package import Package, load_package
from dml.refs import DatasetRef, EmbeddingsRef, PackageRef

_SMALL_DATASET = 10_000
"""Up to so many images to embed this process is done before Ray has started."""
_LENGTH_TOLERANCE = 1e-3

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Unit:
    """One fragment and where its embeddings go."""

    number: int
    fragment: str
    part: str


def embed(
    store: str,
    package: PackageRef,
    dataset: DatasetRef,
    *,
    previous: EmbeddingsRef | None = None,
    num_workers: int | None = None,
    progress: OnProgress | None = None,
) -> EmbeddingsRef:
    """Embed every image of a dataset; what a killed run has finished is kept.

    Args:
        store: the store's URI.
        package: embeds.
        dataset: is embedded.
        previous: another table of the same package; images it knows are copied from it, not embedded.
        num_workers: Ray actors; None: none for a small dataset, else one per core.
        progress: called with (fragments done, fragments in all).

    Raises:
        IncompatibleArtifact: `previous` was made by another package.
        MissingArtifact, CorruptArtifact: package or dataset are not what their refs say.
    """
    if previous is not None and previous.package.fingerprint != package.fingerprint:
        raise IncompatibleArtifact(
            f"Embeddings can be reused only within one package, {package.version}; {previous.uri} was made "
            f"by {previous.package.version}. Leave `previous` out to embed everything."
        )
    uri = storage.join(store, "embeddings", f"{package.version}-{dataset.version}")
    ref = EmbeddingsRef(
        uri=uri,
        fingerprint=storage.digest_of(package.fingerprint, dataset.fingerprint),
        package=package,
        dataset=dataset,
        dim=package.dim,
        rows=dataset.rows,
    )
    if storage.is_complete(uri):
        return ref
    storage.make_folder(uri)
    sources = fragments(dataset)
    names = [f"part-{i:05d}.parquet" for i in range(len(sources))]
    finished = set(storage.list_names(uri))
    units = [
        _Unit(i, fragment, storage.join(uri, name))
        for i, (fragment, name) in enumerate(zip(sources, names, strict=True))
        if name not in finished
    ]
    rows_left = dataset.rows * len(units) // len(names)
    workers = num_workers or (1 if rows_left <= _SMALL_DATASET else os.cpu_count() or 1)
    done = len(names) - len(units)
    for _ in (
        _here(units, package, previous) if workers == 1 else _with_ray(units, package, previous, workers)
    ):
        done += 1
        if progress is not None:
            progress(done, len(names))
    _refuse_wrong(ref, names)
    storage.seal(uri, {"ref": ref.model_dump(mode="json", exclude={"uri"})})
    return ref


class _Embedder:
    """Embeds units; as a Ray actor or in this process."""

    def __init__(self, package: PackageRef, previous: EmbeddingsRef | None) -> None:
        self.package = load_package(package.uri)
        self.known = _Known(previous)

    def __call__(self, unit: _Unit) -> int:
        rows = read_fragment(unit.fragment, ["id", "sha256", IMAGE])
        vectors = self._embed(rows, self.package)
        table = pa.table(
            {
                "id": rows["id"],
                "sha256": rows["sha256"],
                "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
            },
            schema=_schema(vectors.shape[1]),
        )
        sink = pa.BufferOutputStream()
        compression = {"id": "ZSTD", "sha256": "ZSTD", "embedding": "NONE"}
        parquet.write_table(
            table, sink, compression=compression, use_dictionary=False, write_page_checksum=True
        )
        storage.write_bytes(unit.part, sink.getvalue().to_pybytes())
        return unit.number

    def _embed(self, rows: pa.Table, package: Package) -> NDArray[np.float32]:
        digests = rows["sha256"].to_pylist()
        vectors = np.empty((len(digests), package.ref.dim), dtype=np.float32)
        new = [i for i, digest in enumerate(digests) if not self.known.copy(digest, vectors[i])]
        vectors[new] = package.embed(rows[IMAGE].take(pa.array(new, pa.int64())).to_pylist())
        return vectors


class _Known:
    """Vectors of images that were embedded before, by the images' digest."""

    def __init__(self, previous: EmbeddingsRef | None) -> None:
        self.rows: dict[str, int] = {}
        if previous is not None:
            table = read_embeddings(previous)
            self.vectors = table.vectors
            self.rows = {digest: row for row, digest in enumerate(table.digests)}

    def copy(self, digest: str, into: NDArray[np.float32]) -> bool:
        row = self.rows.get(digest)
        if row is None:
            return False
        into[:] = self.vectors[row]
        return True


def _schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )


def _here(units: list[_Unit], package: PackageRef, previous: EmbeddingsRef | None) -> Iterator[int]:
    if units:
        yield from map(_Embedder(package, previous), units)


class _Actor:
    """The embedder as Ray Data's stateful stage: a row names a unit."""

    def __init__(self, package: PackageRef, previous: EmbeddingsRef | None, units: list[_Unit]) -> None:
        self.embedder, self.units = _Embedder(package, previous), units

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"number": self.embedder(self.units[row["item"]])}


def _with_ray(
    units: list[_Unit], package: PackageRef, previous: EmbeddingsRef | None, workers: int
) -> Iterator[int]:
    if not units:
        return
    # One logical CPU more than actors: Ray Data waits for ever when its pool holds them all.
    with ray_session(num_cpus=workers + 1):
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        numbers = ray.data.from_items(list(range(len(units))), override_num_blocks=len(units))
        embedded = numbers.map(
            _Actor,
            fn_constructor_args=(package, previous, units),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(units))),
            num_cpus=1,
        )
        for row in embedded.iter_rows():
            yield row["number"]


def _refuse_wrong(ref: EmbeddingsRef, names: list[str]) -> None:
    table = read_embeddings(ref)
    lengths = np.linalg.norm(table.vectors, axis=1)
    off = np.abs(lengths - 1) > _LENGTH_TOLERANCE
    if len(table.ids) != ref.rows or len(set(table.ids)) != ref.rows or off.any() or np.isnan(lengths).any():
        raise InvalidData(
            f"Embeddings must have one unit-length row for each of {ref.rows} samples; {ref.uri} has "
            f"{len(table.ids)} rows of {len(set(table.ids))} samples, {int(off.sum())} of another length, in "
            f"{len(names)} parts. Delete the folder and embed again."
        )


@dataclass(frozen=True)
class EmbeddingTable:
    """An embeddings table in memory, in the order of the dataset's rows."""

    ids: list[str]
    digests: list[str]
    vectors: NDArray[np.float32]
    """(N, D), unit length."""


def read_embeddings(ref: EmbeddingsRef) -> EmbeddingTable:
    """Read a table; memory: its vectors once."""
    filesystem, path = storage.filesystem(ref.uri)
    names = [name for name in storage.list_names(ref.uri) if name.endswith(".parquet")]
    vectors = np.empty((ref.rows, ref.dim), dtype=np.float32)
    ids: list[str] = []
    digests: list[str] = []
    for name in names:
        part = parquet.read_table(f"{path}/{name}", filesystem=filesystem, partitioning=None)
        values = part["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, ref.dim)
        if len(ids) + len(part) > ref.rows:
            raise InvalidData(f"{ref.uri} must have {ref.rows} rows; it has more. Delete it and embed again.")
        vectors[len(ids) : len(ids) + len(part)] = values
        ids += part["id"].to_pylist()
        digests += part["sha256"].to_pylist()
    return EmbeddingTable(ids, digests, vectors[: len(ids)])

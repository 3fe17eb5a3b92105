"""Embed a whole dataset with one package: one Parquet part per fragment, finished parts never made again.

The table's folder is named by package and dataset. A part's name appears only once it is whole, the manifest
only once every part is there: after any number of crashes the table has exactly one row per sample.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml import storage
from dml.cluster import capacity, is_remote, ray_session
from dml.data.dataset import fragments, read_fragment
from dml.data.schema import IMAGE
from dml.errors import IncompatibleArtifact, InvalidData
from dml.models.package import load_package
from dml.refs import DatasetRef, EmbeddingsRef, PackageRef
from dml.retrieval.table import KnownVectors, part_name, part_uris, read_part, write_part

_SMALL_DATASET = 10_000
"""Up to so many images to embed this process is done before Ray has started."""
_LENGTH_TOLERANCE = 1e-3
_MOST_GPUS_ASKED_FOR = 8
"""Of a cluster that grows and does not say how far."""

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Unit:
    """One fragment and where its embeddings go."""

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
        num_workers: Ray actors; None: none where few images are to be embedded, else one for each GPU that
            the cluster has or can grow to, or without any for each core.
        progress: called with (fragments done, fragments in all).

    Raises:
        IncompatibleArtifact: `previous` was made by another package.
        MissingArtifact, CorruptArtifact: package or dataset are not what their refs say.
        InvalidData: the package gives vectors that are no numbers, or not of unit length.
    """
    if previous is not None and previous.package.fingerprint != package.fingerprint:
        raise IncompatibleArtifact(
            f"Embeddings can be reused only within one package, {package.version}; {previous.uri} was made "
            f"by {previous.package.version}. Leave `previous` out to embed everything."
        )
    uri = storage.join(store, "embeddings", f"{package.version}-{dataset.version}")
    ref = EmbeddingsRef(
        uri=uri,
        fingerprint=storage.digest_of(package.fingerprint, dataset.fingerprint, dataset.rows),
        package=package,
        dataset=dataset,
        dim=package.dim,
        rows=dataset.rows,
    )
    if storage.is_complete(uri):
        return ref
    storage.make_folder(uri)
    units = [
        _Unit(fragment, storage.join(uri, part_name(number)))
        for number, fragment in enumerate(fragments(dataset))
    ]
    finished = set(part_uris(uri))
    left = [unit for unit in units if unit.part not in finished]
    embedded = _embed_units(left, package, previous, num_workers or _choose_workers(left, dataset, previous))
    for done, _ in enumerate(embedded, start=len(units) - len(left) + 1):
        if progress is not None:
            progress(done, len(units))
    _refuse_other_rows(units)
    storage.seal(uri, {"ref": ref.model_dump(mode="json", exclude={"uri"})})
    return ref


def _choose_workers(units: list[_Unit], dataset: DatasetRef, previous: EmbeddingsRef | None) -> int:
    if dataset.rows <= _SMALL_DATASET or _num_new(units, previous) <= _SMALL_DATASET:
        return 1
    return len(units) if is_remote() else os.cpu_count() or 1


def _num_new(units: list[_Unit], previous: EmbeddingsRef | None) -> int:
    """How many images must be embedded, not copied."""
    known = None if previous is None else KnownVectors(previous)
    digests = (read_fragment(unit.fragment, ["sha256"])["sha256"] for unit in units)
    return sum(len(own) if known is None else int((known.rows_of(own) < 0).sum()) for own in digests)


class _Embedder:
    """Embeds units; as a Ray actor or in this process."""

    def __init__(self, package: PackageRef, previous: EmbeddingsRef | None) -> None:
        self.package = load_package(package.uri)
        self.known = None if previous is None else KnownVectors(previous)

    def __call__(self, unit: _Unit) -> None:
        rows = read_fragment(unit.fragment, ["id", "sha256", IMAGE])
        vectors = np.empty((len(rows), self.package.ref.dim), dtype=np.float32)
        known = np.full(len(rows), -1) if self.known is None else self.known.rows_of(rows["sha256"])
        if self.known is not None:
            self.known.copy(known, into=vectors)
        new = np.flatnonzero(known < 0)
        vectors[new] = self.package.embed(rows[IMAGE].take(pa.array(new)).to_pylist())
        _refuse_wrong_length(vectors, unit, self.package.ref)
        write_part(unit.part, rows["id"], rows["sha256"], vectors)


def _refuse_wrong_length(vectors: NDArray[np.float32], unit: _Unit, package: PackageRef) -> None:
    wrong = ~(np.abs(np.linalg.norm(vectors, axis=1) - 1) <= _LENGTH_TOLERANCE)
    if wrong.any():
        raise InvalidData(
            f"Embeddings must be of unit length; {int(wrong.sum())} of {len(vectors)} that package "
            f"{package.uri} made of {unit.fragment} are not, the first in row {int(wrong.argmax())}. "
            "Train a package whose weights are numbers."
        )


def _embed_units(
    units: list[_Unit], package: PackageRef, previous: EmbeddingsRef | None, workers: int
) -> Iterator[None]:
    """Yields after each unit."""
    if workers > 1 and len(units) > 1:
        yield from _with_ray(units, package, previous, min(workers, len(units)))
    elif units:
        yield from map(_Embedder(package, previous), units)


class _Actor:
    """The embedder as Ray Data's stateful stage: a row names a unit."""

    def __init__(self, package: PackageRef, previous: EmbeddingsRef | None, units: list[_Unit]) -> None:
        self.embedder, self.units = _Embedder(package, previous), units

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self.embedder(self.units[row["item"]])
        return row


def _with_ray(
    units: list[_Unit], package: PackageRef, previous: EmbeddingsRef | None, workers: int
) -> Iterator[None]:
    # One logical CPU more than actors: Ray Data waits for ever when its pool holds them all.
    with ray_session(num_cpus=workers + 1):
        import ray.data

        gpus = capacity("GPU", wanted=min(workers, _MOST_GPUS_ASKED_FOR))
        cpus = capacity("CPU")
        now, most = (gpus.now, gpus.most) if gpus.most else (max(cpus.now - 1, 1), max(cpus.most - 1, 1))
        actors = min(workers, most)
        kind = "GPU" if gpus.most else "CPU"
        logger.info("embed: up to %d actors with a %s each; there are %s and %s", actors, kind, gpus, cpus)

        ray.data.DataContext.get_current().enable_progress_bars = False
        numbers = ray.data.from_items(list(range(len(units))), override_num_blocks=len(units))
        embedded = numbers.map(
            _Actor,
            fn_constructor_args=(package, previous, units),
            compute=ray.data.ActorPoolStrategy(min_size=min(max(now, 1), actors), max_size=actors),
            num_cpus=1,
            num_gpus=1 if gpus.most else None,
        )
        for _ in embedded.iter_rows():
            yield


def _refuse_other_rows(units: list[_Unit]) -> None:
    """Each part must have its fragment's samples, and with that the table each sample exactly once."""
    for unit in units:
        if not read_part(unit.part, ["id"])["id"].equals(read_fragment(unit.fragment, ["id"])["id"]):
            raise InvalidData(
                f"{unit.part} must have the samples of {unit.fragment}, in their order; it has others. "
                "Delete it and embed again."
            )

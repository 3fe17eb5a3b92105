"""Embed a dataset or a split with one package: one Parquet part per fragment; finished parts are kept.

The table's folder is named by package, dataset and split. A part's name appears only once it is whole, the
manifest only once every part is there and was read again: after any number of crashes the table has exactly
one row per sample, and a damaged part is made anew.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from dml import errors, storage
from dml.cluster import capacity, on_cluster, quiet_ray_data, ray_session
from dml.data.dataset import StoredFragment, fragments, read_fragment, read_fragment_images
from dml.embedding.table import (
    KnownVectors,
    SealedPart,
    copy_part,
    find_embeddings,
    part_name,
    rows_held,
    seal_table,
    sealed_parts,
    write_part,
)
from dml.errors import (
    CorruptArtifact,
    DmlError,
    IncompatibleArtifact,
    InvalidData,
    MissingArtifact,
    StorageUnavailable,
)
from dml.faces import NoFace
from dml.models.package import Package, load_package
from dml.progress import Ticker
from dml.refs import DatasetRef, EmbeddingsRef, PackageRef

_SMALL_DATASET = 10_000
"""Up to so many images to embed this process is done before Ray has started."""
_LENGTH_TOLERANCE = 1e-3
_MOST_GPUS_ASKED_FOR = 8
"""Of a cluster that grows and does not say how far."""
_ROUNDS = 2  # in the second, what an earlier run has left damaged is made again
_READ_THREADS = 8
_BYTES_HELD = 1 << 30
_MOST_NAMED = 20

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class _PartJob:
    """One fragment, the samples of it to embed, and the part to write."""

    fragment: StoredFragment
    split: str | None
    part: str
    same: SealedPart | None = None
    """The part of another table with the same rows."""

    @property
    def name(self) -> str:
        return self.part.rpartition("/")[2]


def embed(
    store: str,
    package: PackageRef,
    dataset: DatasetRef,
    *,
    split: str | None = None,
    previous: EmbeddingsRef | None = None,
    num_workers: int | None = None,
    progress: OnProgress | None = None,
) -> EmbeddingsRef:
    """Embed every image of a dataset or of a split; finished parts of a killed run are kept.

    What another table of the same package and dataset knows is copied: a split's vectors are not embedded
    again with the whole dataset, nor the other way round. Of `previous` whole parts are copied where a
    fragment is the same, and only the other parts are looked through for images.

    Args:
        store: the store's URI.
        package: embeds.
        dataset: is embedded.
        split: only its samples; None: all.
        previous: another table of the same package; images it knows are copied from it, not embedded.
        num_workers: Ray actors; None: none where few images are to be embedded, else one for each GPU that
            the cluster has or can grow to, or without any for each core.
        progress: called with (fragments done, fragments in all).

    Raises:
        IncompatibleArtifact: `previous` was made by another package.
        MissingArtifact, CorruptArtifact: package or dataset are not what their refs say.
        NoFace: the package detects faces and images show none; the message names them.
        InvalidData: the split has no rows, or the package gives vectors that are not of unit length.
    """
    _refuse_other_package(previous, package)
    ref = _ref_of(store, package, dataset, split)
    if _is_whole(ref.uri):
        logger.info("embed: nothing to do, all %d embeddings are in %s", ref.rows, ref.uri)
        return ref
    jobs = _begin(ref, dataset, previous)
    known = [*([] if previous is None else [previous]), *_of_other_splits(store, package, dataset, split)]
    left, made = _not_there(ref, jobs), set[_PartJob]()
    for _ in range(_ROUNDS):
        workers = num_workers or _choose_workers(left, ref, known)
        num_new = _observe(_embed_parts(left, package, known, workers), len(left), len(jobs), progress)
        logger.info("embed: %d of %d images embedded, the other vectors copied", num_new, ref.rows)
        made |= set(left)
        rows = _rows_held(jobs, {job.part for job in made})
        left = [job for job in jobs if rows[job] is None]
        if not left:
            seal_table(ref, {job.name: rows[job] or 0 for job in jobs})
            return ref
        _remove_parts(left)
        left = [replace(job, same=None) for job in left]
    raise CorruptArtifact(
        f"{left[0].part} must have the samples of {left[0].fragment.uri} once it is written; it has not, "
        f"after {_ROUNDS} times. Look after the disk, and whether another program writes there."
    )


def _refuse_other_package(previous: EmbeddingsRef | None, package: PackageRef) -> None:
    if previous is not None and previous.embedder.fingerprint != package.fingerprint:
        raise IncompatibleArtifact(
            f"Embeddings can be reused only within one package, {package.version}; {previous.uri} was made "
            f"by {previous.embedder.version}. Leave `previous` out to embed everything."
        )


def _begin(ref: EmbeddingsRef, dataset: DatasetRef, previous: EmbeddingsRef | None) -> list[_PartJob]:
    """Create the folder of an unfinished table; returns its parts."""
    same = {} if previous is None else _parts_by_rows(previous, ref.split)
    was_sealed = storage.is_complete(ref.uri)
    storage.make_folder(ref.uri)
    if was_sealed:  # and is damaged, else nothing would be done
        storage.delete(storage.join(ref.uri, storage.MANIFEST))
    return [
        _PartJob(
            fragment,
            ref.split,
            storage.join(ref.uri, part_name(number)),
            same.get((fragment.name, fragment.deleted)),
        )
        for number, fragment in enumerate(fragments(dataset))
    ]


def _parts_by_rows(table: EmbeddingsRef, split: str | None) -> dict[tuple[str, tuple[int, ...]], SealedPart]:
    """The parts of a table by their fragment and its deleted rows; none if it is of another split."""
    if table.split != split or not isinstance(table.items, DatasetRef):
        return {}
    try:
        parts = zip(fragments(table.items), sealed_parts(table.uri), strict=True)
        return {(fragment.name, fragment.deleted): part for fragment, part in parts}
    except StorageUnavailable:
        raise
    except (DmlError, ValueError) as error:
        logger.warning("no part of %s is copied as it is: %s", table.uri, error)
        return {}


def _not_there(ref: EmbeddingsRef, jobs: Sequence[_PartJob]) -> list[_PartJob]:
    present = set(storage.list_names(ref.uri))
    return [job for job in jobs if job.name not in present]


def _observe(embedded: Iterator[int], num_left: int, num_jobs: int, progress: OnProgress | None) -> int:
    """Embed, and report progress after each part; returns how many images were embedded, not copied."""
    num_new = 0
    with Ticker("embed") as ticker:
        ticker.begin("embedding", "fragments", num_left)
        for done, num_embedded in enumerate(embedded, start=num_jobs - num_left + 1):
            num_new += num_embedded
            ticker.count()
            if progress is not None:
                progress(done, num_jobs)
    return num_new


def _remove_parts(jobs: Sequence[_PartJob]) -> None:
    logger.warning("%d parts are made again: damaged, or of other samples; %s", len(jobs), jobs[0].part)
    for job in jobs:
        storage.delete(job.part)


def _ref_of(store: str, package: PackageRef, dataset: DatasetRef, split: str | None) -> EmbeddingsRef:
    if split is not None and split not in dataset.splits:
        raise InvalidData(
            f"An embedding of the split {split!r} needs rows in it; {dataset} has the "
            f"splits {sorted(dataset.splits)}. Ingest it with another --split."
        )
    name = f"{package.version}-{dataset.version}" + ("" if split is None else f"-{split}")
    rows = dataset.rows if split is None else dataset.splits[split].rows
    return EmbeddingsRef(
        uri=storage.join(store, "embeddings", name),
        fingerprint=storage.digest_of(package.fingerprint, dataset.fingerprint, rows, split),
        embedder=package,
        items=dataset,
        split=split,
        dim=package.dim,
        rows=rows,
    )


def _is_whole(uri: str) -> bool:
    """Whether a finished table is there, and every part has its recorded size."""
    try:
        return "parts" in storage.verify_opened(uri, digests=False)
    except (MissingArtifact, CorruptArtifact):
        return False


def _of_other_splits(
    store: str, package: PackageRef, dataset: DatasetRef, split: str | None
) -> list[EmbeddingsRef]:
    """The finished tables of the same package and dataset."""
    uris = [
        _ref_of(store, package, dataset, other).uri for other in (None, *dataset.splits) if other != split
    ]
    return [find_embeddings(uri) for uri in uris if _is_whole(uri)]


def _rows_held(jobs: Sequence[_PartJob], made: set[str]) -> dict[_PartJob, int | None]:
    """Number of rows of each part; None: it must be made again. Parts of earlier runs are read completely."""

    def of(job: _PartJob) -> int | None:
        return rows_held(job.part, job.fragment, job.split, whole=job.part not in made)

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return dict(zip(jobs, pool.map(of, jobs), strict=True))


def _choose_workers(jobs: Sequence[_PartJob], ref: EmbeddingsRef, known: Sequence[EmbeddingsRef]) -> int:
    if ref.rows <= _SMALL_DATASET or _num_new(jobs, known) <= _SMALL_DATASET:
        return 1
    return len(jobs) if on_cluster() else os.cpu_count() or 1


def _num_new(jobs: Sequence[_PartJob], known: Sequence[EmbeddingsRef]) -> int:
    """How many images must be embedded, not copied."""
    if all(job.same is not None for job in jobs):
        return 0
    vectors = _known_vectors(jobs, known)
    return sum(int((vectors.rows_of(_samples(job)["sha256"]) < 0).sum()) for job in jobs if job.same is None)


def _samples(job: _PartJob) -> pa.Table:
    """The `id` and `sha256` of a job's samples, and their `row` in the fragment."""
    rows = read_fragment(job.fragment, ["id", "sha256", "split"])
    rows = rows.append_column("row", pa.array(np.arange(len(rows))))
    return rows if job.split is None else rows.filter(compute.equal(rows["split"], job.split))


def _known_vectors(jobs: Sequence[_PartJob], known: Sequence[EmbeddingsRef]) -> KnownVectors:
    """The vectors of other tables, but of the parts that are copied as they are."""
    return KnownVectors(*known, without={job.same.uri for job in jobs if job.same is not None})


class _Embedder:
    """Writer of parts, as a Ray actor or in this process."""

    def __init__(self, package: PackageRef, known: Sequence[EmbeddingsRef], jobs: Sequence[_PartJob]) -> None:
        self._uri, self._known_tables, self._jobs = package.uri, known, jobs

    @cached_property
    def package(self) -> Package:
        """Loaded only if a part is not the same as another table's."""
        return load_package(self._uri)

    @cached_property
    def known(self) -> KnownVectors:
        return _known_vectors(self._jobs, self._known_tables)

    def __call__(self, job: _PartJob) -> int:
        """Write a part; returns how many of its images were embedded."""
        if job.same is not None and copy_part(job.same, job.part):
            return 0
        samples = _samples(job)
        vectors = np.empty((len(samples), self.package.ref.dim), dtype=np.float32)
        known = self.known.rows_of(samples["sha256"])
        self.known.copy(known, into=vectors)
        new = np.flatnonzero(known < 0)
        start = 0
        for images in _images(job, samples["row"].to_numpy()[new]):
            try:
                vectors[new[start : start + len(images)]] = self.package.embed(images)
            except NoFace:
                self._refuse_without_face(job, samples.take(new))
                raise
            start += len(images)
        _refuse_wrong_length(vectors, samples["id"], self.package.ref)
        write_part(job.part, samples["id"], samples["sha256"], vectors)
        return len(new)

    def _refuse_without_face(self, job: _PartJob, samples: pa.Table) -> None:
        """Raise NoFace with all images of a fragment that are to be embedded and show no face."""
        images = chain.from_iterable(_images(job, samples["row"].to_numpy()))
        ids = samples["id"].to_pylist()
        faceless = sorted(
            id_ for id_, image in zip(ids, images, strict=True) if not self.package.shows_face(image)
        )
        listed = ", ".join(faceless[:_MOST_NAMED]) + (", ..." if len(faceless) > _MOST_NAMED else "")
        raise NoFace(
            f"Every image must show a face to be embedded by package {self.package.ref.version}; "
            f"{len(faceless)} of {len(ids)} in {job.fragment.name} show none: {listed}. Nothing is left out "
            "by itself: take them out of the dataset (dml correct DATASET ID... --remove), or import the "
            "model without --detector."
        )


def _images(job: _PartJob, rows: NDArray[np.int64]) -> Iterator[list[bytes]]:
    """The images of a fragment's rows, ascending, in blocks of at most `_BYTES_HELD`."""
    held: list[bytes] = []
    for images in read_fragment_images(job.fragment, rows):
        held += images
        if sum(map(len, held)) > _BYTES_HELD:
            yield held
            held = []
    if held:
        yield held


def _refuse_wrong_length(vectors: NDArray[np.float32], ids: pa.ChunkedArray, package: PackageRef) -> None:
    wrong = ~(np.abs(np.linalg.norm(vectors, axis=1) - 1) <= _LENGTH_TOLERANCE)
    if wrong.any():
        first = ids[int(wrong.argmax())].as_py()
        what = package.source or "a training"
        raise InvalidData(
            f"Embeddings must be of unit length; {int(wrong.sum())} of {len(vectors)} that package "
            f"{package.version}, of {what}, made are not, the first of image {first}. Use a network that "
            "gives numbers, or take what it cannot embed out: dml correct DATASET ID... --remove."
        )


def _embed_parts(
    jobs: Sequence[_PartJob], package: PackageRef, known: Sequence[EmbeddingsRef], workers: int
) -> Iterator[int]:
    """Write the parts; yields after each how many images were embedded."""
    if workers > 1 and len(jobs) > 1:
        yield from _with_ray(jobs, package, known, min(workers, len(jobs)))
    elif jobs:
        yield from map(_Embedder(package, known, jobs), jobs)


class _Actor:
    """The embedder as a stateful stage of Ray Data: a row names a job; the result contains its error."""

    def __init__(self, package: PackageRef, known: Sequence[EmbeddingsRef], jobs: Sequence[_PartJob]) -> None:
        self.embedder, self.jobs = _Embedder(package, known, jobs), jobs

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            embedded = self.embedder(self.jobs[row["item"]])
        except DmlError as error:  # Ray Data would wrap it, and lose its class
            return {**row, "error": type(error).__name__, "message": str(error), "embedded": 0}
        return {**row, "error": "", "message": "", "embedded": embedded}


def _with_ray(
    jobs: Sequence[_PartJob], package: PackageRef, known: Sequence[EmbeddingsRef], workers: int
) -> Iterator[int]:
    # One logical CPU more than actors: Ray Data waits for ever when its pool holds them all.
    with ray_session(num_cpus=workers + 1):
        import ray.data

        gpus = capacity("GPU", wanted=min(workers, _MOST_GPUS_ASKED_FOR))
        cpus = capacity("CPU")
        now, most = (gpus.now, gpus.most) if gpus.most else (max(cpus.now - 1, 1), max(cpus.most - 1, 1))
        actors = min(workers, most)
        kind = "GPU" if gpus.most else "CPU"
        logger.info("embed: up to %d actors with a %s each; there are %s and %s", actors, kind, gpus, cpus)

        quiet_ray_data()
        numbers = ray.data.from_items(list(range(len(jobs))), override_num_blocks=len(jobs))
        embedded = numbers.map(
            _Actor,
            fn_constructor_args=(package, known, jobs),
            compute=ray.data.ActorPoolStrategy(min_size=min(max(now, 1), actors), max_size=actors),
            num_cpus=1,
            num_gpus=1 if gpus.most else None,
        )
        with closing(iter(embedded.iter_rows())) as rows:  # else Ray Data's threads outlive the session
            for row in rows:
                if row["error"]:
                    raise getattr(errors, str(row["error"]))(row["message"])
                yield int(row["embedded"])

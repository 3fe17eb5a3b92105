"""Build a gallery's log into the next version of its index, and switch to it with nothing lost between.

    collect what the log changes up to its revision S -> build a version that covers S -> publish it

What is written meanwhile has later revisions, and so is the delta of the new version, as it was of the former
one. The log keeps what is enrolled, so a rollback to any version is another delta of the same log.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from dml import storage
from dml.data.dataset import read_rows
from dml.data.schema import POSITION
from dml.errors import CorruptArtifact, ForgottenMeanwhile, IncompatibleArtifact
from dml.faces import NoFace
from dml.models.package import load_package
from dml.names import split_version, versioned
from dml.refs import ChangesRef, DatasetRef, EmbeddingsRef, ExternalModelRef, IndexRef, PackageRef
from dml.retrieval import index as versions
from dml.retrieval.bundle import open_bundle
from dml.retrieval.changes import NO_POSITION, Changes, write_changes
from dml.retrieval.gallery.checks import require_unit_length
from dml.retrieval.gallery.log import BUSY_TIMEOUT_S, ERASED, Entry, Log, erased_id
from dml.retrieval.gallery.shipped import open_shipped_log
from dml.retrieval.shards import open_index

LOG_FILE = "log.sqlite"
_IMAGES_AT_ONCE = 256


def folder_of(store: str, name: str) -> str:
    """Where the log of a gallery is."""
    return storage.named_folder(store, "galleries", name)


def log_path(store: str, name: str) -> Path:
    """The file of its log; of a store on S3, this machine's copy of it."""
    folder = folder_of(store, name)
    if storage.is_remote(store):
        return storage.cache_dir() / "galleries" / storage.digest_of(folder)[:12] / name / LOG_FILE
    return Path(storage.resolve(storage.join(folder, LOG_FILE)))


def open_log(
    store: str,
    name: str,
    *,
    path: Path | None = None,
    create: bool = False,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> Log | None:
    """The log of a gallery; None: nothing was ever enrolled or forgotten.

    Args:
        store: the store's URI.
        name: of the gallery.
        path: of its file; None: `log_path`.
        create: make it where it is missing.
        busy_timeout_s: how long to wait for a transaction of another process.

    Raises:
        CorruptArtifact, IncompatibleArtifact: as `Log`.
    """
    path = path or log_path(store, name)
    if storage.is_remote(store):
        return open_shipped_log(path, folder_of(store, name), create=create, busy_timeout_s=busy_timeout_s)
    if not create and not path.exists():
        return None
    log = Log(path, create=create, busy_timeout_s=busy_timeout_s)
    if log.is_ready:
        return log
    log.close()
    return None


@contextmanager
def opened_log(store: str, name: str) -> Iterator[Log | None]:
    """The log of a gallery during the block; None: nothing was ever enrolled or forgotten."""
    log = open_log(store, name)
    try:
        yield log
    finally:
        if log is not None:
            log.close()


def collect_changes(store: str, name: str, embeddings: EmbeddingsRef) -> ChangesRef | None:
    """Publish what the log changes of a table up to now, for `build_index`.

    What was enrolled as an image and has no vector by the table's embedder is embedded first.

    Args:
        store: the store's URI.
        name: of the index.
        embeddings: the table that the index is built of.

    Returns:
        None: nothing was ever enrolled or forgotten.

    Raises:
        IncompatibleArtifact: vectors of another embedder were enrolled without images.
        CorruptArtifact: the log does not reach what the published version covers: it was lost, or an older
            one took its place.
    """
    published = versions.published_index(store, name)
    covered = 0 if published is None else published.covers_revision
    with opened_log(store, name) as log:
        reached = None if log is None else log.revision
        if (reached or 0) < covered:
            raise behind(name, reached, covered)
        if log is None:
            return None
        log.truncate()  # of what was forgotten, what a killed process left goes now
        log.merge()
        embed_missing(log, embeddings.embedder, after=0)
        with log.snapshot():
            revision, entries = log.revision, log.entries_after(0, embeddings.embedder.fingerprint)
    if not revision:
        return None
    ids = read_rows(embeddings.items, split=embeddings.split, columns=["id"])["id"]
    mine = pa.array([entry.id for entry in entries], pa.large_string())
    of_table = compute.is_in(mine, value_set=ids.combine_chunks()).to_pylist()
    present = {entry.id for entry, is_there in zip(entries, of_table, strict=True) if is_there}
    # One without a vector was enrolled in the moment since they were embedded: the next version takes it.
    enrolled = [entry for entry in entries if entry.op == "enrol" and entry.vector is not None]
    revision = min([revision, *(e.revision - 1 for e in entries if e.op == "enrol" and e.vector is None)])
    changes = Changes(
        revision,
        [entry.id for entry in entries if entry.op != "update" and entry.id in present],
        {e.id: _columns(e, embeddings) for e in entries if e.op == "update" and e.id in present},
        [_item(entry, embeddings) for entry in enrolled],
        np.stack([entry.vector for entry in enrolled if entry.vector is not None]) if enrolled else None,
    )
    return write_changes(store, name, changes)


def behind(name: str, reached: int | None, revision: int) -> CorruptArtifact:
    """The error for a log that has not, or no longer, what its gallery had."""
    got = "there is none" if reached is None else f"it ends at {reached}"
    return CorruptArtifact(
        f"The log of gallery {name} must reach revision {revision}, which was acknowledged; {got}. Restore "
        "it from a backup, all its files; or give up what was enrolled since a version of the index that "
        f"covers less: dml rollback index {name}@VERSION."
    )


def _columns(entry: Entry, embeddings: EmbeddingsRef) -> dict[str, Any]:
    names = embeddings.items.attributes
    return {"label": entry.label, **{name: entry.attributes.get(name) for name in names}}


def _item(entry: Entry, embeddings: EmbeddingsRef) -> dict[str, Any]:
    digest = {"sha256": entry.content} if isinstance(embeddings.items, DatasetRef) else {}
    return {"id": entry.id, **_columns(entry, embeddings), **digest}


def publish_index(store: str, ref: IndexRef) -> None:
    """Make a built version the one that searches use, together with its model; one file is replaced.

    While it is replaced nobody can write to the gallery, and everything that was enrolled after what the
    version covers has a vector by its model: no search misses one, or compares vectors of two models.

    Raises:
        MissingArtifact, CorruptArtifact: it cannot be opened and searched; the former version stays.
        IncompatibleArtifact: something was enrolled as a vector of another model; the former version stays.
        ForgottenMeanwhile: an item of this version was erased while it was built; the former version stays.
    """
    with _held(store, ref) as log:
        if log is not None:
            _refuse_erased(store, log, ref)
        versions.publish_index(store, ref)


def _refuse_erased(store: str, log: Log, ref: IndexRef) -> None:
    """Take back a version with items that were erased meanwhile: the erasure saw it, or this does."""
    if ref.changes is None:
        return
    erased = {id_ for id_ in log.forgotten() if id_.startswith(ERASED)}
    enrolled = _enrolled_rows(ref) if erased else []
    is_back = any(erased_id(id_) in erased and log.entry(id_) is None for id_ in enrolled)
    if is_back or not storage.is_complete(ref.changes.uri):  # what it was built of is erased, too
        versions.take_back(store, ref)
        raise ForgottenMeanwhile(
            f"An index must not hold what is forgotten; items of gallery {ref.name} were erased while "
            "it was built. Nothing was published; begin again."
        )


def _enrolled_rows(ref: IndexRef) -> list[str]:
    """The ids of the enrolled items that a version has rows of."""
    ids: list[str] = []
    for uri in [shard.uri for shard in ref.shards] or [ref.uri]:
        table = open_bundle(versions.read_index(uri)).items.table
        ids += table["id"].filter(compute.equal(table[POSITION], NO_POSITION)).to_pylist()
    return ids


def rollback_index(store: str, name: str) -> IndexRef:
    """Make a former version of an index the one that searches use again, with what happened since it.

    Args:
        store: the store's URI.
        name: NAME, the version before the current one; or NAME@VERSION, a former one.

    Raises:
        MissingArtifact: there is no such former version.
        CorruptArtifact: it cannot be opened and searched; the current version stays.
        IncompatibleArtifact: something was enrolled as a vector of the current model; that stays.
    """
    base, version = split_version(name, "index")
    folder = storage.named_folder(store, "indexes", base)
    if not storage.list_versions(folder):
        raise storage.missing_version(folder, version, "index")
    with storage.locked_pointer(folder) as pointer:
        target = versioned(base, pointer.rollback_target(version))
    with _held(store, versions.find_index(store, target)):
        return versions.rollback_index(store, target)


@contextmanager
def _held(store: str, ref: IndexRef) -> Iterator[Log | None]:
    """The log, to which nobody writes; what was enrolled since a version has vectors by its embedder."""
    with opened_log(store, ref.name) as log:
        if log is None:
            yield None
            return
        embedder = ref.embeddings.embedder
        embed_missing(log, embedder, after=ref.covers_revision)  # the many, while others write
        if storage.is_remote(store):
            open_index(ref).check()  # what it fetches takes longer than others should wait
        with log.held():
            embed_missing(log, embedder, after=ref.covers_revision)
            yield log
        embed_missing(log, embedder, after=ref.covers_revision)  # none, unless others did not wait so long


def embed_missing(log: Log, embedder: PackageRef | ExternalModelRef, *, after: int) -> None:
    """Embed what was enrolled after a revision as an image and has no vector by this embedder.

    Raises:
        IncompatibleArtifact: it has no image.
    """
    missing = log.without_vector(after, embedder.fingerprint)
    for start in range(0, len(missing), _IMAGES_AT_ONCE):
        log.transact(partial(_write_vectors, log, embedder, missing[start : start + _IMAGES_AT_ONCE]))


def _write_vectors(log: Log, embedder: PackageRef | ExternalModelRef, ids: list[str]) -> None:
    """Embed images of the log, inside a transaction."""
    images = [(id_, image) for id_ in ids if (image := log.image(id_)) is not None]
    without = set(ids) - {id_ for id_, _ in images}
    gone = {id_ for id_ in without if (entry := log.entry(id_)) is None or entry.op == "forget"}
    if without - gone:
        raise IncompatibleArtifact(
            f"What is enrolled must have a vector by {embedder}, or an image to embed; {len(without - gone)} "
            f"items, such as {min(without - gone)!r}, are vectors of another model. Forget them, or enrol "
            "their images."
        )
    if not images:
        return
    if not isinstance(embedder, PackageRef):
        raise IncompatibleArtifact(
            f"Enrolled images must be embedded by the index's model; {embedder} is not in the store. Index "
            "with a registered model, or forget them and enrol their vectors."
        )
    package = load_package(embedder.uri)
    try:
        vectors = package.embed([image for _, image in images])
    except NoFace:
        faceless = sorted(id_ for id_, image in images if not package.shows_face(image))
        raise NoFace(
            f"What is enrolled must show a face to be embedded by {embedder}; {len(faceless)} items, such as "
            f"{faceless[0]!r}, show none. Forget them, or index by another model."
        ) from None
    require_unit_length(np.asarray(vectors), [id_ for id_, _ in images])
    for (id_, _), vector in zip(images, vectors, strict=True):
        log.write_vector(id_, embedder.fingerprint, np.asarray(vector, np.float32))

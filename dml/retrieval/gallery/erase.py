"""Erase what was forgotten in a gallery from the versions of its index: ids in, what held them out.

A forgotten item is found no more, and the log holds nothing of it but its id, which versions that were built
before need. When no version holds it any more, a digest of the id is left.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import pyarrow as pa
from pyarrow import compute

from dml import storage
from dml.data.dataset import read_rows
from dml.errors import IncompatibleArtifact, MissingArtifact
from dml.labels import normalized
from dml.refs import DatasetRef, EmbeddingsRef, IndexRef, ItemsRef
from dml.retrieval import index as versions
from dml.retrieval.bundle import open_bundle
from dml.retrieval.changes import read_changes
from dml.retrieval.gallery.fold import folder_of, opened_log
from dml.retrieval.gallery.gallery import Gallery
from dml.retrieval.gallery.log import ERASED, Entry, erased_id, timestamp
from dml.retrieval.shards import open_index


class Forgotten(NamedTuple):
    """What was forgotten in a gallery."""

    ids: list[str]
    segments: list[str]
    """URIs of the segments that were written again without it; of a store on a disk there is none."""


def forget_items(
    store: str,
    name: str,
    ids: Sequence[str],
    identity: str | None = None,
    who: str = "",
    *,
    already: bool = False,
) -> Forgotten:
    """Forget items of a gallery, or all of an identity. Raises as `Gallery.forget`.

    Args:
        store: the store's URI.
        name: of the gallery.
        ids: of the items.
        identity: all items with this label instead.
        who: forgets them, for the log.
        already: where none of them is left, those that were forgotten before and that versions still hold.
    """
    before = _segments_by_id(store, name)
    gallery = Gallery.open(store, name)
    try:
        forgotten = gallery.forget(
            None if identity is not None else list(ids), identity=identity, who=who
        ).ids
    except MissingArtifact:
        forgotten = _forgotten_before(store, name, ids, identity) if already else []
        if not forgotten:
            raise
    finally:
        gallery.close()
    if storage.is_remote(store):  # a segment that could not be rewritten is not passed over in silence
        with opened_log(store, name) as log:
            if log is not None:
                log.truncate()
    return Forgotten(forgotten, _of_items(before, forgotten))


def _forgotten_before(store: str, name: str, ids: Sequence[str], identity: str | None) -> list[str]:
    """These items, or those of an identity that versions of the index hold, if all were forgotten before."""
    forgotten = forgotten_ids(store, name)
    if identity is None:
        return list(dict.fromkeys(ids)) if set(ids) <= set(forgotten) else []
    labels = pa.array([identity, normalized(identity)])
    found: dict[str, None] = {}
    for ref in versions_holding(store, name, forgotten):
        for part in _parts(ref):
            items = open_bundle(part).items.table.select(["id", "label"])
            rows = items.filter(compute.is_in(items["label"], value_set=labels.cast(items["label"].type)))
            found |= dict.fromkeys(_among(rows["id"], forgotten))
    return list(found)


def forget_logged(store: str, name: str, ids: Sequence[str]) -> list[str]:
    """Forget items of a gallery whose log there is, without asking whether they are in it.

    Returns:
        URIs of the segments that were written again without them.
    """
    with opened_log(store, name) as log:
        if log is None:
            return []
        before = log.segments_by_id()
        now = timestamp()

        def forget() -> None:
            revision = log.revision + 1
            for id_ in dict.fromkeys(ids):
                log.write(revision, Entry("forget", id_, time=now), embedder="")
            log.set_revision(revision)

        log.transact(forget)
        log.truncate()
    return _of_items(before, ids)


def _segments_by_id(store: str, name: str) -> dict[str, list[str]]:
    if not storage.is_remote(store):
        return {}
    with opened_log(store, name) as log:
        return {} if log is None else log.segments_by_id()


def _of_items(by_id: Mapping[str, Sequence[str]], ids: Sequence[str]) -> list[str]:
    return sorted({uri for id_ in ids for uri in by_id.get(id_, ())})


def has_entries(store: str, name: str, ids: Sequence[str]) -> bool:
    """Whether all of these items were enrolled in a gallery."""
    with opened_log(store, name) as log:
        entries = [] if log is None else [log.entry(id_) for id_ in ids]
    return bool(entries) and all(entry is not None and entry.op == "enrol" for entry in entries)


def forgotten_ids(store: str, name: str) -> list[str]:
    """The ids that were forgotten in a gallery and that something may still hold."""
    with opened_log(store, name) as log:
        return [] if log is None else [id_ for id_ in log.forgotten() if not id_.startswith(ERASED)]


def require_nothing_forgotten(store: str, ref: IndexRef, purpose: str) -> None:
    """Refuse a version of an index with items that were forgotten in its gallery since it was built.

    Raises:
        IncompatibleArtifact: it has some.
    """
    ids = forgotten_ids(store, ref.name)
    held = _among(open_index(ref).items["id"], ids) if ids else []
    if held:
        raise IncompatibleArtifact(
            f"{purpose} must not hold what is forgotten; {ref} has {len(held)} items that were forgotten "
            f"since it was built. Build it again: dml reindex {ref.name}."
        )


def version_and_forgotten(store: str, name: str) -> object:
    """What is another once a version of an index is published, or items of its gallery are forgotten."""
    with opened_log(store, name) as log:
        forgotten = frozenset() if log is None else frozenset(log.forgotten())
    return storage.current(storage.named_folder(store, "indexes", name)), forgotten


def ids_of_table(table: EmbeddingsRef, ids: Sequence[str]) -> list[str]:
    """Those of the ids whose items an embeddings table is of."""
    return ids_of_items(table.items, ids)


def ids_of_items(items: DatasetRef | ItemsRef, ids: Sequence[str]) -> list[str]:
    """Those of the ids that a dataset or the items of imported vectors have."""
    return _among(read_rows(items, columns=["id"])["id"], ids) if ids else []


def versions_holding(store: str, name: str, ids: Sequence[str]) -> list[IndexRef]:
    """The versions of an index that have one of these items, in their rows or in what was built in."""
    every = [version.ref for version in versions.list_versions(store) if version.ref.name == name]
    return [ref for ref in every if ids and _holds(ref, ids)]


def _holds(ref: IndexRef, ids: Sequence[str]) -> bool:
    if ref.changes is not None:
        named: set[str] = set()
        with suppress(MissingArtifact):  # erased while this version was built: its rows say what it holds
            changes = read_changes(ref.changes)
            named = {*changes.removed, *changes.updated, *(item["id"] for item in changes.enrolled)}
        if named.intersection(ids):
            return True
    return any(_among(open_bundle(part).items.table["id"], ids) for part in _parts(ref))


def _parts(ref: IndexRef) -> list[IndexRef]:
    return [ref.shard(number) for number in range(len(ref.shards))] or [ref]


def _among(column: pa.ChunkedArray, ids: Sequence[str]) -> list[str]:
    wanted = pa.array(ids, column.type)
    return list(wanted.filter(compute.is_in(wanted, value_set=column.combine_chunks())).to_pylist())


@contextmanager
def erasing(store: str, name: str) -> Iterator[None]:
    """During the block no other process of this machine erases from the versions of a gallery's index."""
    with storage.folder_lock(folder_of(store, name)):
        yield


def mark_erased(store: str, name: str, ids: Sequence[str]) -> None:
    """Leave digests of ids that were forgotten and that nothing holds any more."""
    with opened_log(store, name) as log:
        if log is None or not ids:
            return

        def erase() -> None:
            for id_ in ids:
                log.rename_forgotten(id_, erased_id(id_))

        log.transact(erase)
        log.truncate()

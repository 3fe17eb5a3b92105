"""The versions of an index: publish one, roll back to one, find them by name.

A version is a folder of files whose rows correspond, see `bundle`; `build` makes it.
"""

from collections.abc import Mapping
from typing import Any

from dml import storage
from dml.config import IndexConfig
from dml.data.dataset import require_schema
from dml.errors import DmlError, StorageUnavailable
from dml.names import split_version
from dml.refs import IndexRef
from dml.retrieval.shards import open_index


def publish_index(store: str, ref: IndexRef) -> None:
    """Make a built version the one that searches use; one small file is replaced, so readers see either.

    Raises:
        MissingArtifact, CorruptArtifact: it cannot be opened and searched; the former version stays.
    """
    open_index(ref).check()
    storage.point(storage.named_folder(store, "indexes", ref.name), ref.version)


def rollback_index(store: str, name: str) -> IndexRef:
    """Make a former version of an index the one that searches use again.

    Args:
        store: the store's URI.
        name: NAME, the version before the current one; or NAME@VERSION, a former one.

    Raises:
        MissingArtifact: there is no such former version.
        CorruptArtifact: it cannot be opened and searched; the current version stays.
    """
    base, version = split_version(name, "index")
    folder = storage.named_folder(store, "indexes", base)
    if not storage.list_versions(folder):
        raise storage.missing_version(folder, version, "index")
    with storage.locked_pointer(folder) as pointer:
        ref = read_index(storage.join(folder, pointer.rollback_target(version)))
        open_index(ref).check()
        pointer.roll_back(ref.version)
    return ref


def find_index(store: str, name: str) -> IndexRef:
    """The index of a name (its published version) or `NAME@VERSION`.

    Raises:
        InvalidSetting: that is no name.
        MissingArtifact: there is none, with those there are.
    """
    base, version = split_version(name, "index")
    return read_index(storage.find_version(storage.named_folder(store, "indexes", base), version, "index"))


def published_index(store: str, name: str) -> IndexRef | None:
    """The published version of an index; None before the first. Other indexes are not read."""
    folder = storage.named_folder(store, "indexes", name)
    version = storage.current(folder)
    return None if version is None else read_index(storage.join(folder, version))


def index_config_of(ref: IndexRef) -> IndexConfig:
    """How an index version was asked for, to build the next one alike."""
    return IndexConfig.model_validate(storage.read_manifest(ref.uri)["config"])


def list_versions(store: str, damaged: list[DmlError] | None = None) -> list[storage.Version[IndexRef]]:
    """Every version of every index, by name, the oldest first; `damaged` is for `storage.read_versions`."""
    return storage.read_versions(storage.join(store, "indexes"), read_index, damaged)


def versions_of(store: str, name: str) -> list[storage.Version[IndexRef]]:
    """Every version of one index that can be read, the oldest first."""
    folder = storage.named_folder(store, "indexes", name)
    current, found = storage.current(folder), []
    for version in storage.list_versions(folder):
        uri = storage.join(folder, version)
        try:
            manifest = storage.read_manifest(uri)
            ref = read_index(uri, manifest)
        except StorageUnavailable:
            raise
        except DmlError:
            continue
        found.append(storage.Version(ref, str(manifest.get("created", "")), version == current))
    return sorted(found, key=lambda each: each.created)


def take_back(store: str, ref: IndexRef) -> None:
    """Remove a version that must not be published, and those of its shards that no other version has."""
    storage.remove(ref.uri)
    needed = {shard.uri for other in versions_of(store, ref.name) for shard in other.ref.shards}
    for shard in ref.shards:
        if shard.uri not in needed:
            storage.remove(shard.uri)


def published_names(store: str) -> list[str]:
    """The names of the indexes that have a version in use, or a damaged note of which it is; sorted."""
    root = storage.join(store, "indexes")
    names = storage.list_folders(root)
    return sorted(name for name in names if storage.exists(storage.join(root, name, storage.POINTER)))


def find_index_of_shard(store: str, name: str, uri: str) -> IndexRef | None:
    """A version of an index with the shard at `uri`; None: none of those that can be read has it."""
    damaged: list[DmlError] = []
    refs = (version.ref for version in list_versions(store, damaged) if version.ref.name == name)
    return next((ref for ref in refs if uri in {shard.uri for shard in ref.shards}), None)


def list_indexes(store: str) -> list[IndexRef]:
    """The published version of every index in the store."""
    root = storage.join(store, "indexes")
    versions = {name: storage.current(storage.join(root, name)) for name in storage.list_folders(root)}
    return [read_index(storage.join(root, name, v)) for name, v in versions.items() if v is not None]


def read_index(uri: str, manifest: Mapping[str, Any] | None = None) -> IndexRef:
    """The version of an index in a folder, by its manifest."""
    ref = IndexRef(uri=uri, **(manifest or storage.read_manifest(uri))["ref"])
    require_schema(ref.embeddings.items)  # whose columns the items have
    return ref

"""Imported vectors in the store: found by name, listed, and rolled back.

`vectors/NAME/VERSION` holds the parts of an embeddings table and, in its folder `items`, their ids, labels
and attributes. It is published whole or not at all.
"""

from collections.abc import Mapping
from typing import Any

from dml import storage
from dml.data.dataset import require_schema
from dml.errors import DmlError
from dml.names import split_version
from dml.refs import EmbeddingsRef

FOLDER = "vectors"


def find_vectors(store: str, name: str) -> EmbeddingsRef:
    """The imported vectors NAME, in their current version, or NAME@VERSION.

    Raises:
        InvalidSetting: that is no name.
        MissingArtifact: there are none, with those there are.
    """
    base, version = split_version(name)
    folder = storage.named_folder(store, FOLDER, base)
    return _read_ref(storage.find_version(folder, version, FOLDER))


def has_vectors(store: str, name: str) -> bool:
    """Whether vectors were imported under NAME, or as NAME@VERSION."""
    base, version = split_version(name)
    versions = storage.list_versions(storage.named_folder(store, FOLDER, base))
    return version in versions if version else bool(versions)


def list_vectors(store: str, damaged: list[DmlError] | None = None) -> list[storage.Version[EmbeddingsRef]]:
    """Every version of all imported vectors; `damaged` is for `storage.read_versions`."""
    return storage.read_versions(storage.join(store, FOLDER), _read_ref, damaged)


def rollback_vectors(store: str, name: str) -> EmbeddingsRef:
    """Make a former version of imported vectors the current one.

    An index that was made of other vectors stays as it is; roll that back, too.

    Args:
        store: the store's URI.
        name: NAME, the version before the current one; or NAME@VERSION, a former one.

    Raises:
        MissingArtifact: there is no such former version.
        CorruptArtifact: it cannot be read; the current version stays.
    """
    base, version = split_version(name, "vectors")
    folder = storage.named_folder(store, FOLDER, base)
    if not storage.list_versions(folder):
        raise storage.missing_version(folder, version, "vectors")
    with storage.locked_pointer(folder) as pointer:
        ref = _read_ref(storage.join(folder, pointer.rollback_target(version)))
        pointer.roll_back(ref.version)
    return ref


def _read_ref(uri: str, manifest: Mapping[str, Any] | None = None) -> EmbeddingsRef:
    ref = EmbeddingsRef(uri=uri, **(manifest or storage.read_manifest(uri))["ref"])
    require_schema(ref.items)
    return ref

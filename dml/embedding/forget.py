"""A version of imported vectors without some items, and the versions that hold these.

Later imports leave the items out, since `forgotten.json` lists them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from dml import storage
from dml.data.dataset import StoredFragment, fragments, read_fragment, read_rows
from dml.data.forgotten import digest_of_id, forgotten_ids
from dml.data.quarantine import QUARANTINE, read_quarantine
from dml.embedding.imported import FOLDER, find_vectors, list_vectors
from dml.embedding.imported_table import ImportedTable
from dml.embedding.table import read_vectors
from dml.errors import InvalidSetting, MissingArtifact
from dml.names import versioned
from dml.refs import EmbeddingsRef, ExternalModelRef


def require_known_vectors(store: str, name: str, ids: Sequence[str]) -> None:
    """Raise MissingArtifact where an item is in no version of imported vectors, and was not forgotten."""
    known = forgotten_ids(store, name, folder=FOLDER)
    missing = {id_ for id_ in ids if digest_of_id(id_) not in known}
    for ref in _versions(store, name) if missing else ():
        missing -= set(read_rows(ref.items, columns=["id"])["id"].to_pylist())
        missing -= _refused_ids(ref)
    if missing or not ids:
        raise MissingArtifact(
            f"Items to forget must be in imported vectors {name!r}; {sorted(missing)[:10]} are in none of "
            "their versions. Give ids as `dml search` shows them. Nothing was removed."
        )


def vectors_containing(store: str, name: str, ids: Sequence[str]) -> list[EmbeddingsRef]:
    """The versions of imported vectors that hold one of these items, or list one in their quarantine."""
    wanted = pa.array(sorted(set(ids)), pa.large_string())

    def holds(ref: EmbeddingsRef) -> bool:
        rows = read_rows(ref.items, columns=["id"])["id"].cast(pa.large_string())
        is_listed = not _refused_ids(ref).isdisjoint(ids)
        return is_listed or bool(compute.any(compute.is_in(rows, wanted)).as_py())

    return [ref for ref in _versions(store, name) if holds(ref)]


def without_vectors(store: str, ref: EmbeddingsRef, ids: Sequence[str]) -> EmbeddingsRef:
    """Publish a version without these items; the pointer is not moved. Memory: one part of the table.

    Raises:
        InvalidSetting: no item would remain.
    """
    name, gone = ref.items.name, pa.array(sorted(set(ids)), pa.large_string())
    folder = storage.named_folder(store, FOLDER, name)
    refused = read_quarantine(storage.join(ref.uri, QUARANTINE))
    problems = [problem for problem in refused if problem.id not in set(ids)]
    assert isinstance(ref.embedder, ExternalModelRef)
    pieces = read_vectors(ref)
    with storage.staged(storage.join(folder, "without")) as staged:
        table = ImportedTable(staged, storage.read_manifest(ref.uri)["source"], ref.embedder)
        for fragment in fragments(ref.items):
            blocks: list[NDArray[np.float32]] = []
            while sum(map(len, blocks)) < fragment.rows:
                blocks.append(next(pieces)[1])
            items = _items_of(fragment, ref)
            is_kept = compute.invert(compute.is_in(items["id"], gone))
            table.write(items.filter(is_kept), np.concatenate(blocks)[is_kept.to_numpy()])
        if not table.num_rows:
            raise InvalidSetting(
                f"Imported vectors must keep at least one item; {name}@{ref.version} holds no others. Remove "
                f"them: dml rm vectors {name}."
            )
        return find_vectors(store, versioned(name, table.publish(folder, name, problems).version))


def point_without_vectors(store: str, name: str, without: Mapping[str, EmbeddingsRef]) -> None:
    """If the current version holds the items, make its replacement in `without`, by its URI, current."""
    folder = storage.named_folder(store, FOLDER, name)
    with storage.locked_pointer(folder) as pointer:
        if pointer.version is not None and (uri := storage.join(folder, pointer.version)) in without:
            pointer.move(without[uri].version)


def _versions(store: str, name: str) -> list[EmbeddingsRef]:
    return [version.ref for version in list_vectors(store) if version.ref.items.name == name]


def _refused_ids(ref: EmbeddingsRef) -> set[str]:
    """The ids in a version's quarantine."""
    return {problem.id for problem in read_quarantine(storage.join(ref.uri, QUARANTINE))}


def _items_of(fragment: StoredFragment, ref: EmbeddingsRef) -> pa.Table:
    """The items of a fragment, in the types that a file is read to."""
    items = read_fragment(fragment, ["id", "label", *ref.items.attributes])
    fields = [f.with_type(pa.large_string()) if f.type == pa.string() else f for f in items.schema]
    return items.cast(pa.schema(fields))

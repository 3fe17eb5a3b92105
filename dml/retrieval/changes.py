"""What a gallery's log changes of an embeddings table, as an artefact: an index is built of both.

`indexes/NAME/changes/VERSION` in the store holds one Parquet file: the enrolled items with their vectors,
those of the table with another label or attributes, and the ids of those that are left out. So an index with
enrolled items is built anywhere, and again, from its parents alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from dml import storage
from dml.data.dataset import read_row_parts, with_wide_offsets
from dml.data.schema import IMAGE, POSITION, dataset_schema, items_schema
from dml.embedding.table import read_pieces
from dml.errors import IncompatibleArtifact
from dml.refs import ChangesRef, DatasetRef, EmbeddingsRef, IndexRef, ItemsRef

NO_POSITION = -1
"""The position of an item that was enrolled: it has no row in the dataset."""
_FILE = "changes.parquet"
_REMEDY = "Build the index again: dml reindex NAME."


@dataclass(frozen=True)
class Changes:
    """The changes of a table's items up to a revision of the log."""

    revision: int
    removed: Sequence[str] = ()
    """Ids of the table's items that are left out."""
    updated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Id to label and attributes."""
    enrolled: Sequence[Mapping[str, Any]] = ()
    """Items: id, label, sha256 and attributes."""
    vectors: NDArray[np.float32] | None = None
    """(M, D) of the enrolled items; None: there is none."""


def items_columns(items: ItemsRef) -> pa.Schema:
    """The columns that an index has of items, of which any may be missing."""
    stored = (dataset_schema if isinstance(items, DatasetRef) else items_schema)(items.attributes)
    fields = [field.with_nullable(True) for field in stored if field.name != IMAGE]
    return pa.schema([*fields, pa.field(POSITION, pa.int64())])


def require_unchanged(index: IndexRef, purpose: str) -> None:
    """Refuse an index with what was enrolled or forgotten, where only its embeddings table is read.

    Raises:
        IncompatibleArtifact: it has some.
    """
    changes = index.changes
    if changes is not None and changes.enrolled + changes.updated + changes.removed:
        raise IncompatibleArtifact(
            f"{purpose} needs an index of an embeddings table alone; {index} has {changes.enrolled} enrolled "
            f"items, {changes.updated} changed ones, and is without {changes.removed}. Enrol and forget in "
            "that engine, or search the index here."
        )


def write_changes(store: str, name: str, changes: Changes) -> ChangesRef:
    """Publish changes; the same ones give the same version.

    Args:
        store: the store's URI.
        name: of the index.
        changes: of its gallery.
    """
    rows: list[dict[str, Any]] = [{"op": "forget", "id": id_} for id_ in changes.removed]
    rows += [_row("update", {"id": id_, **columns}) for id_, columns in changes.updated.items()]
    rows += [_row("enrol", item) for item in changes.enrolled]
    vectors = [] if changes.vectors is None else list(changes.vectors)
    embedding = [None] * (len(rows) - len(vectors)) + vectors
    table = pa.table(
        {
            **{key: pa.array([row.get(key) for row in rows], pa.string()) for key in ("op", "id", "columns")},
            "embedding": pa.array(embedding, pa.list_(pa.float32())),
        }
    )
    digest = [[row.get(key) for key in ("op", "id", "columns")] for row in rows]
    fingerprint = storage.digest_of(
        "changes", name, changes.revision, digest, storage.digest_of_bytes(np.array(vectors).tobytes())
    )
    uri = storage.join(storage.named_folder(store, "indexes", name), storage.CHANGES, fingerprint[:12])
    ref = ChangesRef(
        uri=uri,
        fingerprint=fingerprint,
        revision=changes.revision,
        enrolled=len(changes.enrolled),
        updated=len(changes.updated),
        removed=len(changes.removed),
    )
    if not storage.is_intact(uri):
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink, write_page_checksum=True)
        with storage.staged(uri) as staged:
            storage.write_bytes(storage.join(staged, _FILE), sink.getvalue().to_pybytes())
            storage.publish(staged, uri, {"ref": ref.model_dump(mode="json", exclude={"uri"})})
    return ref


def _row(op: str, item: Mapping[str, Any]) -> dict[str, Any]:
    columns = {name: value for name, value in item.items() if name != "id"}
    return {"op": op, "id": item["id"], "columns": json.dumps(columns, sort_keys=True)}


def read_changes(ref: ChangesRef) -> Changes:
    """The changes that were published.

    Raises:
        MissingArtifact, CorruptArtifact: they are not there, or not as they were published.
    """
    folder = storage.fetch(ref.uri, ref.fingerprint)
    with storage.reading(ref.uri, _REMEDY):
        table = parquet.read_table(folder / _FILE, page_checksum_verification=True, partitioning=None)
    rows = table.select(["op", "id", "columns"]).to_pylist()
    embedding = table["embedding"].filter(compute.equal(table["op"], "enrol"))
    return Changes(
        ref.revision,
        [row["id"] for row in rows if row["op"] == "forget"],
        {row["id"]: json.loads(row["columns"]) for row in rows if row["op"] == "update"},
        [{"id": row["id"], **json.loads(row["columns"])} for row in rows if row["op"] == "enrol"],
        np.array(embedding.to_pylist(), np.float32) if len(embedding) else None,
    )


class ChangedRows:
    """The rows of an index: those of a table, or of its parts, with the changes of a gallery.

    Enrolled items follow the last part of a table.

    Args:
        embeddings: the table.
        ref: the changes; None: there are none.
    """

    def __init__(self, embeddings: EmbeddingsRef, ref: ChangesRef | None) -> None:
        self.embeddings = embeddings
        self._changes = None if ref is None else read_changes(ref)
        self._with_enrolled = embeddings.parts is None or embeddings.parts[1] == len(
            storage.read_manifest(embeddings.uri)["parts"]
        )
        self._removed = pa.array([] if self._changes is None else self._changes.removed, pa.large_string())

    def items(self) -> Iterator[pa.Table]:
        """The items, some at a time."""
        table = self.embeddings
        for part in read_row_parts(table.items, split=table.split, numbers=table.parts):
            yield part if self._changes is None else _nullable(self._updated(self._left(part, part["id"])))
        if self._changes is not None and self._with_enrolled and self._changes.enrolled:
            schema = items_columns(table.items)
            rows = [{**item, POSITION: NO_POSITION} for item in self._changes.enrolled]
            yield _nullable(with_wide_offsets(pa.Table.from_pylist(rows, schema)))

    def vectors(self) -> Iterator[NDArray[np.float32]]:
        """(n, D) their vectors, some at a time."""
        for piece in read_pieces(self.embeddings):
            if len(self._removed):
                is_left = compute.invert(compute.is_in(piece.ids, value_set=self._removed))
                yield piece.vectors[is_left.to_numpy()]
            else:
                yield piece.vectors
        if self._changes is not None and self._with_enrolled and self._changes.vectors is not None:
            yield self._changes.vectors

    def _left(self, part: pa.Table, ids: pa.ChunkedArray) -> pa.Table:
        if not len(self._removed):
            return part
        return part.filter(compute.invert(compute.is_in(ids, value_set=self._removed)))

    def _updated(self, part: pa.Table) -> pa.Table:
        updated = {} if self._changes is None else self._changes.updated
        if not updated:
            return part
        matches = compute.index_in(part["id"], pa.array(list(updated), pa.large_string()))
        rows = np.flatnonzero(compute.is_valid(matches).to_numpy())
        if not len(rows):
            return part
        columns = list(updated.values())
        of_rows = [columns[matches[int(row)].as_py()] for row in rows]
        mask = np.zeros(len(part), np.bool_)
        mask[rows] = True
        for name in of_rows[0]:
            values = pa.array([of_row[name] for of_row in of_rows], part.schema.field(name).type)
            column = compute.replace_with_mask(part[name].combine_chunks(), pa.array(mask), values)
            part = part.set_column(part.schema.get_field_index(name), name, column)
        return part


def _nullable(table: pa.Table) -> pa.Table:
    """The same rows, whose columns may all be missing: what was enrolled has no size and no split."""
    return table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))

"""Transactions of a gallery's log as a Parquet file: their changes in, the file out, and back.

Of each item it has the last change, with its vectors and its image.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from dml import storage
from dml.errors import CorruptArtifact, IncompatibleArtifact
from dml.retrieval.gallery.log import Entry, erased_id

FORMAT = 2
_META = b"dml.segment"
RESTORE = "Restore the folder from a backup, all its files."
_SCHEMA = pa.schema(
    {
        "kind": pa.string(),
        "revision": pa.int64(),
        "op": pa.string(),
        "id": pa.string(),
        "label": pa.string(),
        "attributes": pa.string(),
        "content": pa.string(),
        "who": pa.string(),
        "time": pa.string(),
        "embedder": pa.string(),
        "vector": pa.binary(),
        "image": pa.large_binary(),
    }
)


class Logged(NamedTuple):
    """One change of a log."""

    kind: Literal["entry", "vector", "erased", "hold", "release"]
    """entry: of an item; vector: another one of an item; erased: the id of a forgotten item was replaced by
    its digest, which is this one's id, with the revision of the forgetting; hold, release: nobody else writes
    between them."""
    entry: Entry
    embedder: str = ""
    """Of the vector."""
    image: bytes | None = None


@dataclass(frozen=True)
class Segment:
    """What some transactions changed."""

    log: str
    """Of the log; another one of the same gallery has another."""
    first: int
    last: int
    revision: int
    """Of the log after them."""
    writers: tuple[str, ...]
    """One for each transaction, unique to it."""
    hold: str
    """What its writer held the log by; "": it did not. Of many transactions: what holds it after them."""
    changes: tuple[Logged, ...]


def compacted(changes: Iterable[Logged]) -> tuple[Logged, ...]:
    """The last change of each item, in order; what came before leaves nothing."""
    entries: dict[str, Logged] = {}
    vectors: dict[str, dict[str, Logged]] = {}
    forgotten: dict[str, str] = {}
    others: dict[tuple[str, str], Logged] = {}
    for change in changes:
        id_ = change.entry.id
        if change.kind == "entry":
            former = entries.pop(id_, None)
            if change.entry.op == "forget" or change.entry.vector is not None:
                vectors.pop(id_, None)
            elif former is not None and former.entry.op != "forget":  # it keeps its vector and image
                kept = replace(change.entry, vector=former.entry.vector)
                change = Logged("entry", kept, former.embedder, former.image)
            entries[id_] = change
            if change.entry.op == "forget":
                forgotten[erased_id(id_)] = id_
        elif change.kind == "vector":
            vectors.setdefault(id_, {})[change.embedder] = change
        elif change.kind == "erased" and _is_of(entries.get(forgotten.get(id_, "")), change):
            former = entries.pop(forgotten[id_])
            entries[id_] = former._replace(entry=replace(former.entry, id=id_))
        else:
            others[change.kind, id_] = change
    more = [vector for of_item in vectors.values() for vector in of_item.values()]
    return (*entries.values(), *more, *others.values())


def _is_of(former: Logged | None, erased: Logged) -> bool:
    """Whether an entry is the forgetting whose id was replaced by its digest."""
    return (
        former is not None and former.entry.op == "forget" and former.entry.revision == erased.entry.revision
    )


def hold_after(segment: Segment, hold: str) -> str:
    """What holds the log after a segment of one transaction, which `hold` held before; "": nothing."""
    for change in segment.changes:
        if change.kind == "hold":
            hold = change.entry.id
        elif change.kind == "release" or segment.hold != hold:
            hold = ""
    return hold


def merged(segments: Sequence[Segment]) -> Segment:
    """Segments that follow each other as one: it does to a log what they do, one after another."""
    hold = segments[0].hold
    for segment in segments:
        hold = hold_after(segment, hold)
    changes = (change for segment in segments for change in segment.changes)
    return replace(
        segments[-1],
        first=segments[0].first,
        writers=tuple(writer for segment in segments for writer in segment.writers),
        hold=hold,
        changes=compacted(change for change in changes if change.kind not in ("hold", "release")),
    )


def encode(segment: Segment, gallery: str) -> bytes:
    """The file of a segment."""
    rows = [_row(change) for change in segment.changes]
    table = pa.Table.from_pylist(rows, _SCHEMA)
    meta = {
        "format": FORMAT,
        "gallery": gallery,
        "log": segment.log,
        "first": segment.first,
        "last": segment.last,
        "revision": segment.revision,
        "writers": segment.writers,
        "hold": segment.hold,
    }
    meta["sha256"] = _digest(meta, rows)
    sink = io.BytesIO()
    parquet.write_table(
        table.replace_schema_metadata({_META: json.dumps(meta).encode()}), sink, write_page_checksum=True
    )
    return sink.getvalue()


def decode(content: bytes, gallery: str, uri: str, listed: tuple[int, int] | None = None) -> Segment:
    """The segment of a file.

    Args:
        content: of the file.
        gallery: whose it must be.
        uri: of the file, for the message.
        listed: the first and the last transaction by its name; None: any.

    Raises:
        CorruptArtifact: it is not as it was written.
        IncompatibleArtifact: another version of this program wrote it.
    """
    with storage.reading(uri, RESTORE):
        table = parquet.read_table(pa.BufferReader(content), page_checksum_verification=True)
    try:
        meta = json.loads((table.schema.metadata or {})[_META])
        digest = meta.pop("sha256")
        made = meta["format"]
    except (KeyError, ValueError, TypeError, AttributeError):
        raise _not_as_written(uri) from None
    if made != FORMAT:
        raise IncompatibleArtifact(
            f"A segment must have format {FORMAT} for this program; {uri} has {made!r}. Use the program that "
            "made it."
        )
    rows = table.to_pylist() if table.schema.names == _SCHEMA.names else []
    if digest != _digest(meta, rows) or (listed and listed != (meta["first"], meta["last"])):
        raise _not_as_written(uri)
    if meta["gallery"] != gallery:
        raise CorruptArtifact(
            f"The segments of a gallery must be its own; {uri} is of gallery {meta['gallery']}. {RESTORE}"
        )
    values = {key: meta[key] for key in ("log", "first", "last", "revision", "hold")}
    return Segment(**values, writers=tuple(meta["writers"]), changes=tuple(_change(row) for row in rows))


def _not_as_written(uri: str) -> CorruptArtifact:
    return CorruptArtifact(f"A segment must be as it was written; {uri} is not. {RESTORE}")


def _row(change: Logged) -> dict[str, Any]:
    entry = change.entry
    return {
        "kind": change.kind,
        "revision": entry.revision,
        "op": entry.op,
        "id": entry.id,
        "label": entry.label,
        "attributes": json.dumps(dict(entry.attributes), allow_nan=False),
        "content": entry.content,
        "who": entry.who,
        "time": entry.time,
        "embedder": change.embedder,
        "vector": None if entry.vector is None else entry.vector.astype("<f4").tobytes(),
        "image": change.image,
    }


def _change(row: dict[str, Any]) -> Logged:
    entry = Entry(
        row["op"],
        row["id"],
        row["label"],
        json.loads(row["attributes"]),
        row["content"],
        row["who"],
        row["time"],
        None if row["vector"] is None else np.frombuffer(row["vector"], "<f4"),
        row["revision"],
    )
    return Logged(row["kind"], entry, row["embedder"], row["image"])


def _digest(meta: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for row in rows:
        for name in _SCHEMA.names:
            value = row[name]
            plain = value if isinstance(value, bytes) else json.dumps(value).encode()
            digest.update(len(plain).to_bytes(8, "little") + plain)
    return digest.hexdigest()

"""Transactions of a gallery's log as Parquet files of a store on S3: changes in, one segment each out.

`galleries/NAME/segments/LAST-FIRST.parquet` holds what the transactions FIRST to LAST changed: of each item
its last change, with its vectors and its image. A segment is written only where there is none of its number,
so of two machines that write the same one the second is refused.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from dml import storage
from dml.errors import CorruptArtifact, DmlError, IncompatibleArtifact
from dml.retrieval.gallery.log import Entry

FOLDER = "segments"
FORMAT = 1
_NAME = re.compile(r"(\d{12})-(\d{12})\.parquet")
_META = b"dml.segment"
_THREADS = 8
_RESTORE = "Restore the folder from a backup, all its files."
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
    """entry: of an item; vector: another one of an item; erased: an id was replaced by its digest, which this
    one's id is; hold, release: nobody else writes between them."""
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
    writer: str
    """Unique to the transaction."""
    hold: str
    """What its writer held the log by; "" where it did not."""
    changes: tuple[Logged, ...]


class Listed(NamedTuple):
    """A segment in a listing."""

    name: str
    etag: str
    age_s: float
    first: int
    last: int


def name_of(first: int, last: int) -> str:
    """The file name of a segment; names are in the order of the last transactions."""
    return f"{last:012d}-{first:012d}.parquet"


def compacted(changes: Iterable[Logged]) -> tuple[Logged, ...]:
    """The last change of each item, in order; what came before leaves nothing."""
    entries: dict[str, Logged] = {}
    vectors: dict[str, dict[str, Logged]] = {}
    others = []
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
        elif change.kind == "vector":
            vectors.setdefault(id_, {})[change.embedder] = change
        else:
            others.append(change)
    more = [vector for of_item in vectors.values() for vector in of_item.values()]
    return (*entries.values(), *more, *others)


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
        "writer": segment.writer,
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
    with storage.reading(uri, _RESTORE):
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
            f"The segments of a gallery must be its own; {uri} is of gallery {meta['gallery']}. {_RESTORE}"
        )
    values = {key: meta[key] for key in ("log", "first", "last", "revision", "writer", "hold")}
    return Segment(**values, changes=tuple(_change(row) for row in rows))


def _not_as_written(uri: str) -> CorruptArtifact:
    return CorruptArtifact(f"A segment must be as it was written; {uri} is not. {_RESTORE}")


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


class Segments:
    """The segments of a gallery in a store on S3; can be shared between threads.

    Args:
        folder: `galleries/NAME` of the store.

    Raises:
        OSError: S3 cannot be reached. By every method.
    """

    def __init__(self, folder: str) -> None:
        self.gallery = folder.rstrip("/").rpartition("/")[2]
        self.objects = storage.ObjectFolder(storage.join(folder, FOLDER))

    @property
    def uri(self) -> str:
        """Of their folder."""
        return self.objects.uri

    def uri_of(self, name: str) -> str:
        """Of one of them."""
        return storage.join(self.uri, name)

    def any(self) -> bool:
        """Whether there is one."""
        return bool(self.objects.list_from(most=1))

    def list_from(self, number: int) -> list[Listed]:
        """Those that end with a transaction or a later one, in order."""
        return [
            Listed(name, etag, age_s, int(match[2]), int(match[1]))
            for name, etag, age_s in self.objects.list_from(f"{number:012d}")
            if (match := _NAME.fullmatch(name))
        ]

    def read(self, listed: Listed) -> tuple[Segment, storage.StoredObject] | None:
        """A segment and its file; None: it was merged into another one meanwhile."""
        stored = self.objects.read(listed.name)
        if stored.content is None:
            return None
        uri = self.uri_of(listed.name)
        return decode(stored.content, self.gallery, uri, (listed.first, listed.last)), stored

    def read_all(self, listed: Sequence[Listed]) -> list[Segment] | None:
        """Segments; None: one of them was merged into another one meanwhile."""
        if len(listed) == 1:
            read = [self.read(listed[0])]
        else:
            with ThreadPoolExecutor(_THREADS) as pool:
                read = list(pool.map(self.read, listed))
        segments = [each[0] for each in read if each is not None]
        return segments if len(segments) == len(listed) else None

    def read_whole(self, listed: Sequence[Listed]) -> Iterator[Segment | DmlError | None]:
        """Each segment, some at once; the error of one that is damaged; None: it was merged meanwhile."""

        def tried(each: Listed) -> Segment | DmlError | None:
            try:
                read = self.read(each)
            except (CorruptArtifact, IncompatibleArtifact) as error:
                return error
            return None if read is None else read[0]

        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(listed), _THREADS):  # not all of them in memory
                yield from pool.map(tried, listed[start : start + _THREADS])

    def write_new(self, segment: Segment) -> str:
        """Write a segment if there is none of its number; its ETag.

        Raises:
            WriteConflict: there is one, of another transaction.
            OSError: S3 could not be reached, and whether it was written is not known.
        """
        name = name_of(segment.first, segment.last)
        nothing = storage.StoredObject(None, None)
        try:
            return self.objects.write_if_unchanged(name, encode(segment, self.gallery), nothing)
        except (
            storage.WriteConflict,
            OSError,
        ):  # perhaps only the answer was lost, and a try before it written
            stored = self.objects.read(name)
            if stored.content is not None:
                there = decode(stored.content, self.gallery, self.uri_of(name))
                if there.writer == segment.writer and stored.etag is not None:
                    return stored.etag
            raise

    def rewrite(self, segment: Segment, read_before: storage.StoredObject) -> str:
        """Replace a segment by one with less in it; its new ETag.

        Raises:
            WriteConflict: it has changed since it was read.
        """
        name = name_of(segment.first, segment.last)
        return self.objects.write_if_unchanged(name, encode(segment, self.gallery), read_before)


def cover(listed: Sequence[Listed], after: int, uri: str) -> list[Listed]:
    """Of listed segments, some that together have every transaction after one, in order.

    Raises:
        CorruptArtifact: one is missing.
    """
    chosen = []
    reached = after
    end = max((each.last for each in listed), default=after)
    while reached < end:
        following = [each for each in listed if each.first <= reached + 1 <= each.last]
        if not following:
            raise CorruptArtifact(
                f"The segments of a gallery must follow each other; in {uri} number {reached + 1} is "
                f"missing, and they end at {end}. {_RESTORE}"
            )
        best = max(following, key=lambda each: each.last)
        chosen.append(best)
        reached = best.last
    return chosen


def missing_numbers(listed: Sequence[Listed]) -> list[int]:
    """The transactions before the last one that no listed segment has, in order."""
    missing: list[int] = []
    reached = 0
    for each in sorted(listed, key=lambda segment: segment.first):
        missing += range(reached + 1, each.first)
        reached = max(reached, each.last)
    return missing

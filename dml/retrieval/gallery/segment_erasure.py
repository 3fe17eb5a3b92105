"""Segments of a gallery that are written again without items that were forgotten."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from dml import storage
from dml.errors import GalleryUnavailable
from dml.retrieval.gallery.log import erased_id
from dml.retrieval.gallery.segment import Logged
from dml.retrieval.gallery.segments import Segments

_TRIES = 5


def erase_items(segments: Segments, name: str, ids: set[str]) -> str | None:
    """Rewrite a segment without items that were forgotten.

    Args:
        segments: of the gallery.
        name: of the segment.
        ids: of the items; or the digest of an id that nothing holds any more.

    Returns:
        Its new ETag; None: it stays as it is.

    Raises:
        GalleryUnavailable: other processes write to it all the time.
    """
    for listed in segments.list_from(int(name[:12])):
        if listed.name != name:
            continue
        for _ in range(_TRIES):
            read = segments.read(listed)
            if read is None:
                return None
            segment, stored = read
            changes = tuple(_without(segment.changes, ids))
            if changes == segment.changes:
                return None
            with suppress(storage.WriteConflict):
                return segments.rewrite(replace(segment, changes=changes), stored)
        raise GalleryUnavailable(f"Only one process must erase from {name} at a time. Try again.")
    return None


def _without(changes: Sequence[Logged], ids: set[str]) -> Iterator[Logged]:
    """The changes without items that were forgotten; of a forgetting itself, the id is left or its digest."""
    for change in changes:
        id_ = change.entry.id
        digest = erased_id(id_)
        if change.kind not in ("entry", "vector") or not ids & {id_, digest}:
            yield change
        elif change.kind == "entry" and change.entry.op == "forget":
            entry = replace(change.entry, id=digest) if digest in ids else change.entry
            yield change._replace(entry=entry)

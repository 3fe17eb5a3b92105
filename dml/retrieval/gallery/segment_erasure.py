"""Segments of a gallery that are written again without items that were forgotten.

First those of one transaction, then the merged ones: so none is missed that is made meanwhile, see
`merging`.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from dml import storage
from dml.errors import GalleryUnavailable
from dml.retrieval.gallery.log import erased_id
from dml.retrieval.gallery.segment import Logged, decode
from dml.retrieval.gallery.segments import Segments, is_empty, numbers_of

_TRIES = 10
Forgotten = Mapping[str, int]
"""Ids of items, or digests of ids that nothing holds any more; with the revision of each one's forgetting."""


def erase_items(segments: Segments, held: Mapping[str, Forgotten]) -> dict[str, str]:
    """Rewrite segments without items that were forgotten, wherever their transactions are by now.

    Args:
        segments: of the gallery.
        held: names of segments that hold some, or that did before they were merged.

    Returns:
        The new ETags of those that were written, by name.

    Raises:
        GalleryUnavailable: other processes write to one of them all the time.
    """
    written = {}
    for name, forgotten in held.items():
        first, last = numbers_of(name)
        for each in segments.list_from(first, most=last - first + 1):
            if not each.is_empty and each.last <= last:
                written[each.name] = _erase_from(segments, each.name, forgotten)
    ranges = [(*numbers_of(name), forgotten) for name, forgotten in held.items()]
    for each in segments.list_merged(min(first for first, _, _ in ranges), unwritten=True):
        forgotten = _latest(of for first, last, of in ranges if first <= each.last and each.first <= last)
        if forgotten:
            written[each.name] = _erase_from(segments, each.name, forgotten)
    return {name: etag for name, etag in written.items() if etag is not None}


def _latest(forgotten: Iterable[Forgotten]) -> dict[str, int]:
    """All of them, each with its last forgetting."""
    latest: dict[str, int] = {}
    for of_name in forgotten:
        for id_, revision in of_name.items():
            latest[id_] = max(revision, latest.get(id_, 0))
    return latest


def _erase_from(segments: Segments, name: str, forgotten: Forgotten) -> str | None:
    """Rewrite a segment without what was forgotten; its new ETag; None: it stays as it is."""
    first, last = numbers_of(name)
    for _ in range(_TRIES):
        stored = segments.read_object(name)
        try:
            if stored.content is None:
                return None
            if is_empty(stored.content):
                if first < last:  # whoever makes it has to begin again
                    segments.write_empty(name, uuid.uuid4().hex, stored)
                return None
            segment = decode(stored.content, segments.gallery, segments.uri_of(name), (first, last))
            changes = tuple(_without(segment.changes, forgotten))
            if changes == segment.changes:
                return None
            return segments.write(replace(segment, changes=changes), stored)
        except storage.WriteConflict:
            continue
    raise GalleryUnavailable(f"Only one process must erase from {name} at a time. Try again.")


def _without(changes: Sequence[Logged], forgotten: Forgotten) -> Iterator[Logged]:
    """The changes without items that were forgotten; of a forgetting itself, the id is left or its digest.

    What was enrolled again stays: its revision is later, or the same where one transaction did both.
    """
    revisions = {change.entry.id: change.entry.revision for change in changes if change.kind == "entry"}
    for change in changes:
        id_, revision = change.entry.id, change.entry.revision
        digest = erased_id(id_)
        latest = max(forgotten.get(id_, -1), forgotten.get(digest, -1))
        if change.kind == "entry" and change.entry.op == "forget":
            is_erased = forgotten.get(digest, -1) >= revision
            yield change._replace(entry=replace(change.entry, id=digest)) if is_erased else change
        elif change.kind not in ("entry", "vector") or revisions.get(id_, -1) >= latest:
            yield change

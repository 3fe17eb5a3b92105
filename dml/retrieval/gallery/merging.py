"""Segments of many transactions, merged into one: a gallery is opened by few requests, however old it is.

    empty merged segment -> read its transactions -> write it, if it is still that empty one -> empty those

A merged segment always has the same transactions, and so its name. If a machine is killed, another goes on.

What is forgotten meanwhile does not come back with it. A forgetting writes the segments of the transactions
first, and then the merged one. If that is empty still, the forgetting writes another empty one, so that its
maker is refused and begins again; if there is none yet, its maker will read what the forgetting has written.

The segments of the transactions are emptied and not removed. So a writer that stalled before it wrote one of
their numbers is refused, whenever it goes on.
"""

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from dml import storage
from dml.errors import CorruptArtifact
from dml.retrieval.gallery.segment import RESTORE, decode, merged
from dml.retrieval.gallery.segments import Listed, Segments, is_empty, name_of

TRANSACTIONS = 256
"""In a merged segment."""
_OLDER_THAN_S = 3600.0  # who follows the log has read them
_MOST_BYTES = 1 << 26  # more are left as they are: their number is not what takes time
_TRIES = 5
_THREADS = 8


def merge_segments(
    segments: Segments,
    *,
    transactions: int = TRANSACTIONS,
    older_than_s: float = _OLDER_THAN_S,
    most_bytes: int = _MOST_BYTES,
) -> list[str]:
    """Merge what is old enough, but not the last transaction; and finish what a killed process began.

    Args:
        segments: of the gallery.
        transactions: in a merged segment; every process must say the same.
        older_than_s: since they were written.
        most_bytes: of the segments that are merged into one.

    Returns:
        The names of the merged segments that were finished.

    Raises:
        CorruptArtifact: a segment that is to be merged is damaged or missing; the others stay as they are.
    """
    written = segments.list_merged(0)
    start = written[-1].first if written else 1  # those before were finished before it was begun
    names = {each.name for each in written}
    listed = {each.first: each for each in segments.list_from(start)}
    finished = []
    for first in range(start, max(listed, default=0) - transactions + 1, transactions):
        name = name_of(first, first + transactions - 1)
        single = [listed[number] for number in range(first, first + transactions) if number in listed]
        if len(single) < transactions:
            raise CorruptArtifact(
                f"The segments of a gallery must follow each other; in {segments.uri} "
                f"{transactions - len(single)} are missing from number {first} on. {RESTORE}"
            )
        holding = [each for each in single if not each.is_empty]
        if any(each.age_s < older_than_s for each in holding):
            break
        is_small = sum(each.size_bytes for each in holding) <= most_bytes
        if not holding or not (is_small or name in names):
            continue
        if not _merge(segments, name, single, holding):
            break
        finished.append(name)
    return finished


def _merge(segments: Segments, name: str, single: Sequence[Listed], holding: Sequence[Listed]) -> bool:
    """Write a merged segment if there is none, and empty those that it was made of.

    Returns:
        Whether it is done; False: others prevented it again and again.
    """
    for _ in range(_TRIES):
        stored = segments.read_object(name)
        if stored.content is not None and not is_empty(stored.content):
            log = decode(stored.content, segments.gallery, segments.uri_of(name)).log
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(partial(_empty, segments, log), holding))
            return True
        with suppress(storage.WriteConflict):
            empty = segments.write_empty(name, uuid.uuid4().hex, stored)
            read = segments.read_all(single)
            if read is not None:
                segments.write(merged(read), empty)
    return False


def _empty(segments: Segments, log: str, listed: Listed) -> None:
    """Empty a segment that a merged one has what it holds of, or held."""
    stored = storage.StoredObject(b"", listed.etag)
    while True:
        with suppress(storage.WriteConflict):
            segments.write_empty(listed.name, log, stored)
            return
        read = segments.read(listed)  # a forgetting has written it since, or it is empty
        if read is None or read[0].log != log:
            return
        stored = read[1]

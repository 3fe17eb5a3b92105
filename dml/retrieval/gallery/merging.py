"""Segments of many transactions, merged into one: a gallery is opened by few requests, however old it is.

    empty merged segment -> read its transactions -> write it, if it is still that empty one
    an hour later: empty the segments of its transactions

A merged segment always has the same transactions, and so its name. If a machine is killed, another goes on.

What is forgotten meanwhile does not come back with it. A forgetting writes the segments of the transactions
first, and then the merged one. If that is empty still, the forgetting writes another empty one, so that its
maker is refused and begins again; if there is none yet, its maker will read what the forgetting has written.

The segments of the transactions are emptied an hour later at the earliest: whoever reads them, or copies the
folder file by file, has found them or the merged one. They are not removed, so a writer that stalled before
it wrote one of their numbers is refused, whenever it goes on.
"""

import logging
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from dml import storage
from dml.errors import CorruptArtifact
from dml.retrieval.gallery.segment import RESTORE, decode, merged
from dml.retrieval.gallery.segments import Listed, Segments, is_empty, name_of, numbers_of

logger = logging.getLogger(__name__)

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
    """Merge what is old enough, but not the last transaction; and empty what was merged before.

    Args:
        segments: of the gallery.
        transactions: in a merged segment; every process must say the same.
        older_than_s: since they were written; and since they were merged, before they are emptied.
        most_bytes: of the segments that are merged into one.

    Returns:
        The names of the new merged segments.

    Raises:
        CorruptArtifact: a segment that is to be merged is damaged or missing; the others stay as they are.
    """
    listed = {each.first: each for each in segments.list_from(1)}
    written = {each.name: each for each in segments.list_merged(0)}  # after those that were emptied
    names = []
    for first in range(1, max(listed, default=0) - transactions + 1, transactions):
        name = name_of(first, first + transactions - 1)
        single = [listed[number] for number in range(first, first + transactions) if number in listed]
        if len(single) < transactions:
            raise CorruptArtifact(
                f"The segments of a gallery must follow each other; in {segments.uri} "
                f"{transactions - len(single)} are missing from number {first} on. {RESTORE}"
            )
        holding = [each for each in single if not each.is_empty]
        if name not in written and len(holding) < transactions:
            logger.warning(
                "A merged segment must stay once those it was made of are empty; %s is missing. %s",
                segments.uri_of(name),
                RESTORE,
            )
            continue
        is_old = all(each.age_s >= older_than_s for each in holding)
        is_small = sum(each.size_bytes for each in holding) <= most_bytes
        if name in written:
            if holding and written[name].age_s >= older_than_s:
                _empty_those_of(segments, name, holding)
        elif is_old and is_small and _write(segments, name, single):
            names.append(name)
    return names


def _write(segments: Segments, name: str, single: Sequence[Listed]) -> bool:
    """Write a merged segment; False: others prevented it again and again."""
    for _ in range(_TRIES):
        stored = segments.read_object(name)
        if stored.content is not None and not is_empty(stored.content):
            return True
        with suppress(storage.WriteConflict):
            empty = segments.write_empty(name, uuid.uuid4().hex, stored)
            read = segments.read_all(single)
            if read is not None:
                segments.write(merged(read), empty)
                return True
    return False


def _empty_those_of(segments: Segments, name: str, holding: Sequence[Listed]) -> None:
    """Empty segments that a merged one was made of, which is read before."""
    stored = segments.read_object(name)
    if stored.content is None:
        return
    log = decode(stored.content, segments.gallery, segments.uri_of(name), numbers_of(name)).log
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(partial(_empty, segments, log), holding))


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

"""The segments of a gallery in a store on S3: listed, read, and written once each.

`galleries/NAME/segments/LAST-FIRST.parquet` holds what the transactions FIRST to LAST changed. A segment is
written only where there is none of its number, so of two machines that write the same one the second is
refused.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dml import storage
from dml.errors import CorruptArtifact, DmlError, IncompatibleArtifact
from dml.retrieval.gallery.segment import RESTORE, Segment, decode, encode

FOLDER = "segments"
_NAME = re.compile(r"(\d{12})-(\d{12})\.parquet")
_THREADS = 8


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


class Segments:
    """The segments of a gallery in a store on S3; can be shared between threads.

    Args:
        folder: `galleries/NAME` of the store.

    Raises:
        StorageUnavailable: S3 cannot be reached. By every method.
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
            StorageUnavailable: S3 could not be reached, and whether it was written is not known.
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
                f"missing, and they end at {end}. {RESTORE}"
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

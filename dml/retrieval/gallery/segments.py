"""The segments of a gallery in a store on S3: one for each transaction, and merged ones of many.

`galleries/NAME/segments/NUMBER-NUMBER.parquet` holds what one transaction changed, and
`galleries/NAME/merged/LAST-FIRST.parquet` what the transactions FIRST to LAST changed. A segment is written
only where there is none of its name, so of two machines that write the same transaction the second is
refused, even if it stalled for hours. So a segment is never removed, but emptied once a merged one has what
it held.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dml import storage
from dml.errors import CorruptArtifact, DmlError, IncompatibleArtifact
from dml.retrieval.gallery.segment import RESTORE, Segment, decode, encode

FOLDER, MERGED = "segments", "merged"
_NAME = re.compile(r"(\d{12})-(\d{12})\.parquet")
_EMPTY_BYTES = 32
_THREADS = 8


class Listed(NamedTuple):
    """A segment in a listing."""

    name: str
    etag: str
    age_s: float
    size_bytes: int
    first: int
    last: int

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing: a merged one has it; or it is a merged one that is not written yet.

        Its content is the log's id, or what its writer is known by. No Parquet file is so small.
        """
        return self.size_bytes == _EMPTY_BYTES


def name_of(first: int, last: int) -> str:
    """The file name of a segment; names are in the order of the last transactions."""
    return f"{last:012d}-{first:012d}.parquet"


def numbers_of(name: str) -> tuple[int, int]:
    """The first and the last transaction of a segment."""
    last, first = name.removesuffix(".parquet").split("-")
    return int(first), int(last)


class Segments:
    """The segments of a gallery in a store on S3; can be shared between threads.

    Args:
        folder: `galleries/NAME` of the store.
        open_folder: opens a folder of objects.

    Raises:
        StorageUnavailable: S3 cannot be reached. By every method.
    """

    def __init__(
        self, folder: str, *, open_folder: Callable[[str], storage.ObjectFolder] = storage.ObjectFolder
    ) -> None:
        self.gallery = folder.rstrip("/").rpartition("/")[2]
        self._folder = folder.rstrip("/")
        self._single = open_folder(storage.join(folder, FOLDER))
        self._merged = open_folder(storage.join(folder, MERGED))

    @property
    def uri(self) -> str:
        """URI of the folder of the segments of one transaction."""
        return self._single.uri

    def path_of(self, name: str) -> str:
        """Path of a segment's file below the gallery's folder."""
        first, last = numbers_of(name)
        return storage.join(FOLDER if first == last else MERGED, name)

    def uri_of(self, name: str) -> str:
        """URI of a segment's file."""
        return storage.join(self._folder, self.path_of(name))

    def any(self) -> bool:
        """Whether the gallery has a segment."""
        return bool(self._single.list_from(most=1))

    def list_from(self, number: int, *, most: int | None = None) -> list[Listed]:
        """The segments of one transaction, from a number on, in order.

        Args:
            number: of the first.
            most: so many; None: all.
        """
        return _listed(self._single.list_from(f"{number:012d}", most=most))

    def list_merged(self, number: int, *, unwritten: bool = False) -> list[Listed]:
        """The merged segments that end with a transaction or a later one, in order.

        Args:
            number: of the transaction.
            unwritten: also those that are empty still.
        """
        listed = _listed(self._merged.list_from(f"{number:012d}"))
        return [each for each in listed if unwritten or not each.is_empty]

    def list_after(self, number: int) -> list[Listed]:
        """The segments that together hold all transactions after one; and its own, which may be empty.

        Few requests: where the first ones are merged, they are not listed one by one.
        """
        merged = [] if number else self.list_merged(0)
        reached = number
        for each in merged:
            if each.first <= reached + 1:
                reached = each.last
        single = self.list_from(reached)
        if any(each.is_empty and each.last > reached for each in single):  # merged ones have what they held
            merged = self.list_merged(number)
        return [*merged, *single]

    def read_object(self, name: str) -> storage.StoredObject:
        """The file of a segment; its content is None where there is none."""
        return self._of(name).read(name)

    def read(self, listed: Listed) -> tuple[Segment, storage.StoredObject] | None:
        """A segment and its file; None: it holds nothing, and a merged one has it."""
        stored = self.read_object(listed.name)
        if stored.content is None or is_empty(stored.content):
            return None
        uri = self.uri_of(listed.name)
        return decode(stored.content, self.gallery, uri, (listed.first, listed.last)), stored

    def read_log(self, listed: Listed) -> str | None:
        """The id of the log that a segment of one transaction is of; None: there is no such segment."""
        content = self.read_object(listed.name).content
        if content is None:
            return None
        if is_empty(content):
            return content.decode()
        return decode(content, self.gallery, self.uri_of(listed.name)).log

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
        """Write a segment of one transaction if there is none of its number; its ETag.

        Raises:
            WriteConflict: there is one, of another transaction.
            StorageUnavailable: S3 could not be reached, and whether it was written is not known.
        """
        name = name_of(segment.first, segment.last)
        nothing = storage.StoredObject(None, None)
        try:
            return self.write(segment, nothing)
        except (storage.WriteConflict, OSError):
            # Perhaps only an answer was lost, and an earlier try has written it.
            stored = self.read_object(name)
            if stored.etag is not None and self._writer_of(segment.first, stored) == segment.writers[0]:
                return stored.etag
            raise

    def _writer_of(self, number: int, stored: storage.StoredObject) -> str | None:
        """Who wrote a transaction, whose segment was read; it may have been merged meanwhile."""
        assert stored.content is not None
        if not is_empty(stored.content):
            return decode(stored.content, self.gallery, self.uri_of(name_of(number, number))).writers[0]
        for each in self.list_merged(number):
            read = self.read(each) if each.first <= number else None
            if read is not None:
                return read[0].writers[number - each.first]
        return None

    def write(self, segment: Segment, read_before: storage.StoredObject) -> str:
        """Write a segment if its file has not changed since it was read; its new ETag.

        Raises:
            WriteConflict: it has changed.
        """
        name = name_of(segment.first, segment.last)
        return self._of(name).write_if_unchanged(name, encode(segment, self.gallery), read_before)

    def write_empty(self, name: str, content: str, read_before: storage.StoredObject) -> storage.StoredObject:
        """Write a segment that holds nothing if its file has not changed since it was read; its file.

        Args:
            name: of the segment.
            content: 32 characters.
            read_before: its file.

        Raises:
            WriteConflict: it has changed.
        """
        written = content.encode()
        assert is_empty(written)
        return storage.StoredObject(written, self._of(name).write_if_unchanged(name, written, read_before))

    def _of(self, name: str) -> storage.ObjectFolder:
        first, last = numbers_of(name)
        return self._single if first == last else self._merged


def is_empty(content: bytes) -> bool:
    """Whether the file of a segment holds nothing."""
    return len(content) == _EMPTY_BYTES


def _listed(objects: Sequence[storage.ListedObject]) -> list[Listed]:
    return [
        Listed(each.name, each.etag, each.age_s, each.size_bytes, int(match[2]), int(match[1]))
        for each in objects
        if (match := _NAME.fullmatch(each.name))
    ]


def cover(listed: Sequence[Listed], after: int, uri: str) -> list[Listed]:
    """Of listed segments, some that together hold every transaction after one, in order.

    Raises:
        CorruptArtifact: one is missing.
    """
    chosen = []
    reached = after
    for each in _holding(listed):
        if each.first > reached + 1:
            break
        if each.last > reached:
            chosen.append(each)
            reached = each.last
    end = max((each.last for each in listed), default=after)
    if reached < end:
        raise CorruptArtifact(
            f"The segments of a gallery must follow each other; in {uri} number {reached + 1} is "
            f"missing, and they end at {end}. {RESTORE}"
        )
    return chosen


def missing_numbers(listed: Sequence[Listed]) -> list[int]:
    """The transactions before the last one that no listed segment holds, in order."""
    missing: list[int] = []
    reached = 0
    for each in _holding(listed):
        missing += range(reached + 1, each.first)
        reached = max(reached, each.last)
    return missing


def _holding(listed: Sequence[Listed]) -> list[Listed]:
    """Those that hold something, by their first transaction; of two with the same one, the longer first."""
    return sorted((each for each in listed if not each.is_empty), key=lambda each: (each.first, -each.last))

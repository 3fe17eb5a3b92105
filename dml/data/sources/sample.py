"""The interface of a source: samples that can be read repeatedly, and problems found while listing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from dml.config import SplitConfig

MAX_BYTES = 64 << 20
"""Default size limit of one image file."""

OTHER_KIND, EMPTY_CLASS = "another kind of file", "empty class"
REPEATED_FOLDER, UNUSABLE_COLUMN = "repeated folder", "unusable column"
LEFT_OUT = "left out by the protocol"
UNREADABLE_FOLDER, BROKEN_LINK = "unreadable folder", "broken link"
NO_ROWS = frozenset({OTHER_KIND, EMPTY_CLASS, REPEATED_FOLDER, UNUSABLE_COLUMN, LEFT_OUT})
"""Reasons of problems that do not count as rows, such as a text file beside the images."""


class Refused(Exception):
    """A file that cannot become a row; its reason and detail go to the quarantine table."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Sample(NamedTuple):
    """One image as a source names it."""

    id: str
    """Stable across re-reads of the same source, unique within it."""
    locator: str
    """The argument of `Source.read`."""
    label: str
    split: str | None = None
    """"train" or "test" if the source has a split."""
    attributes: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Problem(NamedTuple):
    """An entry that cannot become a row: one line of the quarantine table."""

    id: str
    label: str
    locator: str
    reason: str
    detail: str


class Stamp(NamedTuple):
    """What identifies a file's content without reading it: equal stamps mean equal content."""

    text: str
    """Of a local file inode, size, mtime and ctime; of an object on S3 size and ETag; of a zip member CRC;
    of an image on the web ETag, or time of the last change and length."""
    changed_ns: int | None = None
    """When the file was last changed (ctime, nanoseconds); None if the text alone tells every change."""


@dataclass(frozen=True)
class Listing:
    """All samples of a source, its usual split, and its problems."""

    samples: list[Sample]
    split: SplitConfig
    problems: list[Problem] = field(default_factory=list)
    ids_are_rows: bool = False
    """Whether ids are numbers of rows, so that an image's id changes if a row above it is removed."""


class Source(Protocol):
    """A layout of labelled images; small, immutable, picklable."""

    def list(self) -> Listing:
        """Every sample, without reading an image."""

    def stamps(self, locators: Sequence[str]) -> Sequence[Stamp | None]:
        """The stamp of each sample's file; None where only its content tells whether it changed."""

    def read(self, locator: str, max_bytes: int = MAX_BYTES) -> bytes:
        """The image file's bytes; never reads more than one byte beyond `max_bytes`.

        Raises:
            Refused: this file cannot be read, or is larger.
            DmlError: no file can be read, for example because the storage does not answer.
        """

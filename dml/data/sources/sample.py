"""What every source lists: samples that can be read again, and what it found wrong while listing."""

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from dml.config import SplitConfig

MAX_BYTES = 64 << 20
"""Of one image file, where nobody sets another limit."""

OTHER_KIND, EMPTY_CLASS = "another kind of file", "empty class"
REPEATED_FOLDER, UNUSABLE_COLUMN = "repeated folder", "unusable column"
LEFT_OUT = "left out by the protocol"
NO_ROWS = frozenset({OTHER_KIND, EMPTY_CLASS, REPEATED_FOLDER, UNUSABLE_COLUMN, LEFT_OUT})
"""Reasons of problems that are no rows: a text file beside the images does not make a source a bad one."""

# Unicode's white space, and what is not seen at all: a byte order mark, zero-width spaces and joiners.
_INVISIBLE = r"[\s\u200b-\u200d\u2060\ufeff]+"
_OUTER_SPACE = re.compile(rf"\A{_INVISIBLE}|{_INVISIBLE}\Z")


class Refused(Exception):
    """One file that cannot become a row; what is wrong with it becomes a line of the quarantine table."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Sample(NamedTuple):
    """One image as a source names it."""

    id: str
    """Stable across re-reads of the same source, unique within it."""
    locator: str
    """What `Source.read` needs to find the bytes."""
    label: str
    split: str | None = None
    """"train" or "test" where the source has a split of its own."""
    attributes: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Problem(NamedTuple):
    """Something that cannot become a row: one line of the quarantine table."""

    id: str
    label: str
    locator: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Listing:
    """All samples of a source, the split its field uses, and what is wrong with it."""

    samples: list[Sample]
    split: SplitConfig
    problems: list[Problem] = field(default_factory=list)


def normalised(label: str) -> str:
    """A label as it is kept: without space around it and in Unicode's form NFC, so that twins are one."""
    return unicodedata.normalize("NFC", _OUTER_SPACE.sub("", label))


class Source(Protocol):
    """A layout of labelled images; small, immutable, picklable."""

    def list(self) -> Listing:
        """Every sample, without reading an image."""

    def read(self, locator: str, max_bytes: int = MAX_BYTES) -> bytes:
        """The image file's bytes, of which never more than one beyond `max_bytes` are read.

        Raises:
            Refused: this one file cannot be read, or is larger.
            DmlError: none can be, as when the storage does not answer.
        """

"""Errors that a user can fix. Each message says what must hold, what was given, and what to do.

    DmlError
    ├── InvalidSetting            a setting, argument or expression (also a ValueError)
    │   └── InvalidFilter         a filter that cannot be read, or does not fit the columns
    ├── InvalidData               the content of a source or table
    │   └── TooManyRefused        too many rows of a source cannot be used
    ├── MissingArtifact           does not exist, or is incomplete
    ├── IncompatibleArtifact      two artefacts that do not belong together
    │   └── ForgottenMeanwhile    items were forgotten while something was made of them
    ├── CorruptArtifact           its bytes differ from what was published
    ├── Unreachable               Prefect, MLflow or Ray does not answer
    │   └── StorageUnavailable    S3 does not answer, or refuses (also an OSError)
    ├── GalleryUnavailable        the log of a gallery cannot be written
    │   └── GalleryBusy           another process has been writing it for too long
    ├── WriteCommitted            a write is durable, but the memory of this process does not show it yet
    ├── StackFailed               a process of `dml up` ended, or was not ready in time
    └── TrainingFailed            a training run cannot continue

The command line prints such an error as one line, without traceback, and exits with its `exit_status`.
Programming mistakes stay `ValueError` and `AssertionError`.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

_NEAR = 0.6  # difflib's own default: `lerning_rate` is near `learning_rate`, `margin` is not near `triplet`


class DmlError(Exception):
    """An error that the user can fix."""

    exit_status = 2
    """The exit status of the command line."""


class InvalidSetting(DmlError, ValueError):
    """An invalid setting, argument or expression."""


class InvalidFilter(InvalidSetting):
    """A filter that cannot be read, or does not fit the columns of the items.

    Args:
        message: one line.
        pointed_at: the filter's text, and below it a caret that points at the mistake; empty: it was no text.
    """

    def __init__(self, message: str, pointed_at: str = "") -> None:
        super().__init__(f"{message}\n{pointed_at}" if pointed_at else message)
        self.message = message


class InvalidData(DmlError):
    """A source or table with invalid content."""


class TooManyRefused(InvalidData):
    """A source with more unusable rows than the limit allows."""

    exit_status = 1


class MissingArtifact(DmlError):
    """A dataset, package, model, embeddings table or index that does not exist or is incomplete."""


class IncompatibleArtifact(DmlError):
    """Two artefacts that do not belong together, such as a query and an index of different models."""


class ForgottenMeanwhile(IncompatibleArtifact):
    """Items were forgotten while something was made of them. Nothing was published; it can begin again."""


class CorruptArtifact(DmlError):
    """An artefact whose bytes are not the bytes that were published."""


class Unreachable(DmlError):
    """A configured server (Prefect, MLflow, Ray) that does not answer, or is a different kind of server."""


class StorageUnavailable(Unreachable, OSError):
    """S3 does not answer, refuses, or has no such bucket; the message names its address and the bucket."""


class GalleryUnavailable(DmlError):
    """The log of a gallery cannot be opened, read or written; nothing was written."""


class GalleryBusy(GalleryUnavailable):
    """Another process has been writing the log for longer than the timeout; nothing was written."""


class WriteCommitted(DmlError):
    """A write that is durable, after which this process failed: it is read again from the log.

    Args:
        message: one line.
        revision: of the transaction that is committed.
    """

    def __init__(self, message: str, revision: int) -> None:
        super().__init__(message)
        self.revision = revision


class StackFailed(DmlError):
    """A process started by `dml up` that ended, failed, or was not ready in time."""

    exit_status = 1


class TrainingFailed(DmlError):
    """A training run that cannot continue, for example because the loss is NaN."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to an error message about a misspelt name; empty if no name is near.

    Args:
        word: the misspelt name.
        known: the valid names.

    Example:
        >>> did_you_mean("semihard", ["random", "semi_hard"])
        " Did you mean 'semi_hard'?"
    """
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, n=3, cutoff=_NEAR)
    return f" Did you mean {' or '.join(repr(by_lower[name]) for name in near)}?" if near else ""


def without_password(text: str) -> str:
    """The text with user and password removed from every URL.

    Example:
        >>> without_password("http://me:secret@host:4200/api does not answer")
        'http://host:4200/api does not answer'
    """
    return re.sub(r"://[^/?#\s]*@", "://", text)

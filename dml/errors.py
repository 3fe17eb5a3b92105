"""Errors that a user can put right: each says what must hold, what came, and what to do.

    DmlError
    ├── InvalidSetting            a setting, argument or expression (also a ValueError)
    ├── InvalidData               the content of a source or table
    │   └── TooManyRefused        too many rows of a source cannot be used
    ├── MissingArtifact           not there, or never finished
    ├── IncompatibleArtifact      two artefacts that do not belong together
    ├── CorruptArtifact           other bytes than were published
    ├── Unreachable               Prefect, MLflow or Ray does not answer
    ├── StackFailed               a process of `dml up` ended, or was not ready in time
    └── TrainingFailed            a training run cannot go on

The command line prints one of these as one line, without traceback, and ends with its `exit_status`.
Programming mistakes stay `ValueError` and `AssertionError`.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

_NEAR = 0.6  # difflib's own default: `lerning_rate` is near `learning_rate`, `margin` is not near `triplet`


class DmlError(Exception):
    """Something the user can put right."""

    exit_status = 2
    """What the command line ends with."""


class InvalidSetting(DmlError, ValueError):
    """A setting, argument or expression that cannot be followed."""


class InvalidData(DmlError):
    """A source or table whose content breaks what the receiver relies on."""


class TooManyRefused(InvalidData):
    """A source so many of whose rows cannot be used that a dataset of the rest is not what was asked for."""

    exit_status = 1


class MissingArtifact(DmlError):
    """A dataset, package, model, embeddings table or index that is not there, or not whole."""


class IncompatibleArtifact(DmlError):
    """Two artefacts that do not belong together, such as a query and an index of different models."""


class CorruptArtifact(DmlError):
    """An artefact whose bytes are not the bytes that were published."""


class Unreachable(DmlError):
    """A server that the settings name (Prefect, MLflow, Ray), and that does not answer, or is another."""


class StackFailed(DmlError):
    """A process that `dml up` started, and that ended by itself, failed, or was not ready in time."""

    exit_status = 1


class TrainingFailed(DmlError):
    """A training run that cannot go on, such as a loss that is no longer a number."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a misspelt name: the nearest of those there are, or nothing.

    Args:
        word: as it was typed.
        known: what it could have been.

    Example:
        >>> did_you_mean("semihard", ["random", "semi_hard"])
        " Did you mean 'semi_hard'?"
    """
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, n=3, cutoff=_NEAR)
    return f" Did you mean {' or '.join(repr(by_lower[name]) for name in near)}?" if near else ""


def without_password(text: str) -> str:
    """A text to show, whose addresses no longer hold user and password.

    Example:
        >>> without_password("http://me:secret@host:4200/api does not answer")
        'http://host:4200/api does not answer'
    """
    return re.sub(r"://[^/?#\s]*@", "://", text)

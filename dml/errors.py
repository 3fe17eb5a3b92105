"""What can be wrong with the world outside: each error says what must hold, what came, and what to do.

Programming mistakes stay `ValueError` and `AssertionError`; these are for artefacts, settings and inputs a
user can put right, so the command line turns them into one clear line and exit status 2.
"""

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
    """A server that the settings name, and that does not answer, or is another."""


class TrainingFailed(DmlError):
    """A training run that cannot go on, such as a loss that is no longer a number."""


class ServiceUnreachable(DmlError):
    """A server that was configured, such as Prefect's or MLflow's, and does not answer."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a misspelt name: the nearest of those there are, or nothing.

    Args:
        word: as it was typed.
        known: what it could have been.

    Example:
        >>> did_you_mean("semihard", ["random", "semi-hard"])
        " Did you mean 'semi-hard'?"
    """
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, n=3, cutoff=_NEAR)
    return f" Did you mean {' or '.join(repr(by_lower[name]) for name in near)}?" if near else ""

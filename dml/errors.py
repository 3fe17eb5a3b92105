"""What can be wrong with the world outside: each error says what must hold, what came, and what to do.

Programming mistakes stay `ValueError` and `AssertionError`; these are for artefacts, settings and inputs a
user can put right, so the command line turns them into one clear line and exit status 2.
"""


class DmlError(Exception):
    """Something the user can put right."""


class InvalidSetting(DmlError, ValueError):
    """A setting, argument or expression that cannot be followed."""


class InvalidData(DmlError):
    """A source or table whose content breaks what the receiver relies on."""


class MissingArtifact(DmlError):
    """A dataset, package, model, embeddings table or index that is not there, or not whole."""


class IncompatibleArtifact(DmlError):
    """Two artefacts that do not belong together, such as a query and an index of different models."""


class CorruptArtifact(DmlError):
    """An artefact whose bytes are not the bytes that were published."""


class TrainingFailed(DmlError):
    """A training run that cannot go on, such as a loss that is no longer a number."""

"""Runtimes that compute a package's embeddings: one file and one class each, looked up by the file's name."""

import pkgutil
from importlib import import_module

from dml.errors import IncompatibleArtifact
from dml.models.runtimes.base import Runtime, StoredNetwork

__all__ = ["Runtime", "StoredNetwork", "runtime"]

_KINDS = sorted(file.name for file in pkgutil.iter_modules(__path__) if file.name != "base")


def runtime(kind: str) -> type[Runtime]:
    """The runtime that a package names; only its libraries are imported.

    Raises:
        IncompatibleArtifact: there is none of that name.
    """
    if kind not in _KINDS:
        raise IncompatibleArtifact(
            f"A package's runtime must be one of {', '.join(_KINDS)}; got {kind!r}. Install the version of "
            "this project that made it."
        )
    module = import_module(f"{__name__}.{kind}")
    return next(
        member
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, Runtime) and member.__module__ == module.__name__
    )

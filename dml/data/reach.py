"""Whether a worker's machine sees what the ingest's own machine sees: the source, and the store's folder.

A machine without the source would else find every image missing, and the dataset would be the rest.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dml import storage
from dml.data.sources.sample import Problem, Sample, Source
from dml.errors import MissingArtifact

_TRIED = 20
_MISSING = "missing file"
_MISSING_TRIED = 3
_reached: set[str] = set()


class Witness(NamedTuple):
    """An image that was read where the source was listed."""

    locator: str
    sha256: str


def find_witness(source: Source, samples: Sequence[Sample]) -> Witness | None:
    """The first image that can be read here, of a few; None: their quarantine will say what is wrong."""
    for sample in samples[:_TRIED]:
        try:
            return Witness(sample.locator, hashlib.sha256(source.read(sample.locator)).hexdigest())
        except Exception:
            continue
    return None


def require_reach(source: Source, witness: Witness | None, staged: str, *, uri: str, node: str) -> None:
    """Once per process and ingest, check that this machine reads the witness and has the folder to write to.

    Args:
        source: to read from.
        witness: what it must hold; None: nothing is known to be readable.
        staged: the folder that the ingest's fragments go to; every ingest has one of its own.
        uri: where the source is, for the message.
        node: this machine, for the message.

    Raises:
        MissingArtifact: it does not.
    """
    if staged in _reached:
        return
    if not storage.is_remote(staged) and not Path(storage.resolve(staged)).is_dir():
        raise MissingArtifact(
            f"Every node must share the store's folder; {node} has no {staged}. Mount the store there at the "
            "same path, or use an s3:// store."
        )
    if witness is not None:
        try:
            found = hashlib.sha256(source.read(witness.locator)).hexdigest()
        except Exception as error:
            raise MissingArtifact(
                f"Every node must see the source; {node} cannot read {witness.locator} of {uri}, which could "
                f"be read where it was listed: {error}. Mount it there at the same path, or put it on S3."
            ) from error
        if found != witness.sha256:
            raise MissingArtifact(
                f"Every node must see the same source; {node} has other bytes than the node that listed "
                f"{uri} has at {witness.locator}. Mount the same folder at the same path."
            )
    _reached.add(staged)


def require_missing_here_too(source: Source, problems: Sequence[Problem], *, uri: str, node: str) -> None:
    """Check that images which a worker's machine did not find are not here either; of a fragment's, a few.

    A folder may be there on a machine and not hold everything, and a manifest may name several folders.

    Args:
        source: to read from.
        problems: of a fragment that was read on another machine.
        uri: where the source is, for the message.
        node: that machine, for the message.

    Raises:
        MissingArtifact: one of them is here.
    """
    for problem in [problem for problem in problems if problem.reason == _MISSING][:_MISSING_TRIED]:
        try:
            source.read(problem.locator)
        except Exception:
            continue
        raise MissingArtifact(
            f"Every node must see the source; {node} has no {problem.locator} of {uri}, which is there where "
            "the source was listed. Mount it there at the same path, or put it on S3."
        )

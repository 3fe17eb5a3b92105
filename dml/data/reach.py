"""Check that a worker's machine can read the source and write to the store, like the machine that listed it.

Otherwise every image would be missing on a machine without the source, and the dataset would be incomplete.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dml import storage
from dml.data.sources.sample import Problem, Sample, Source
from dml.errors import MissingArtifact

_MAX_CANDIDATES = 20
_MISSING = "missing file"
_MAX_MISSING_CHECKED = 3
_checked_folders: set[str] = set()


class ReadableImage(NamedTuple):
    """An image that could be read on the machine that listed the source."""

    locator: str
    sha256: str


def find_readable_image(source: Source, samples: Sequence[Sample]) -> ReadableImage | None:
    """The first of a few images that can be read here; None if none can, which the quarantine will show."""
    for sample in samples[:_MAX_CANDIDATES]:
        try:
            return ReadableImage(sample.locator, hashlib.sha256(source.read(sample.locator)).hexdigest())
        except Exception:
            continue
    return None


def require_reach(source: Source, image: ReadableImage | None, staged: str, *, uri: str, node: str) -> None:
    """Check, once per process and ingest, that this machine can read the image and write to the folder.

    Args:
        source: the source to read from.
        image: one that must be readable; None if none is known.
        staged: the folder for the ingest's fragments; it differs for every ingest.
        uri: the source's URI, for the message.
        node: this machine, for the message.

    Raises:
        MissingArtifact: this machine cannot.
    """
    if staged in _checked_folders:
        return
    if not storage.is_remote(staged) and not Path(storage.resolve(staged)).is_dir():
        raise MissingArtifact(
            f"Every node must share the store's folder; {node} has no {staged}. Mount the store there at the "
            "same path, or use an s3:// store."
        )
    if image is not None:
        try:
            digest = hashlib.sha256(source.read(image.locator)).hexdigest()
        except Exception as error:
            raise MissingArtifact(
                f"Every node must see the source; {node} cannot read {image.locator} of {uri}, which could "
                f"be read where it was listed: {error}. Mount it there at the same path, or put it on S3."
            ) from error
        if digest != image.sha256:
            raise MissingArtifact(
                f"Every node must see the same source; {node} has other bytes than the node that listed "
                f"{uri} has at {image.locator}. Mount the same folder at the same path."
            )
    _checked_folders.add(staged)


def require_missing_locally(source: Source, problems: Sequence[Problem], *, uri: str, node: str) -> None:
    """Check that a few of the images missing on a worker's machine are also missing on this machine.

    A folder can exist on a machine and be incomplete, and a manifest can name several folders.

    Args:
        source: the source to read from.
        problems: problems of a fragment that was read on another machine.
        uri: the source's URI, for the message.
        node: that machine, for the message.

    Raises:
        MissingArtifact: one of them exists on this machine.
    """
    for problem in [problem for problem in problems if problem.reason == _MISSING][:_MAX_MISSING_CHECKED]:
        try:
            source.read(problem.locator)
        except Exception:
            continue
        raise MissingArtifact(
            f"Every node must see the source; {node} has no {problem.locator} of {uri}, which is there where "
            "the source was listed. Mount it there at the same path, or put it on S3."
        )

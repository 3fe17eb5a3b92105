"""What a command line names as a query: an image file, or a file with one vector."""

from pathlib import Path
from typing import TYPE_CHECKING

from dml.errors import MissingArtifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_INSTEAD = "Check the path, or give --id ITEM or --vector FILE instead."


def read_image(path: Path, instead: str = _INSTEAD) -> bytes:
    """The bytes of an image file; raises MissingArtifact where it cannot be read."""
    from dml.data.sources.files import read_local
    from dml.data.sources.sample import MAX_BYTES, Refused

    try:
        return read_local(str(path), MAX_BYTES)
    except Refused as refusal:
        raise MissingArtifact(
            f"The query must be a readable image file; {path}: {refusal.reason}, {refusal.detail}. {instead}"
        ) from refusal


def read_probe(path: Path) -> "bytes | NDArray[np.float32]":
    """An image file's bytes, or the one vector (D,) in a .npy file."""
    if path.suffix.lower() != ".npy":
        return read_image(path, "Check the path, or give a .npy file with one vector.")
    from dml.embedding.vector_files import read_vector

    vector: NDArray[np.float32] = read_vector(path)[0]
    return vector

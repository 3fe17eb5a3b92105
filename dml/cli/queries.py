"""The query that a command line names: an image file, an item, or a file with one vector."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dml.errors import InvalidSetting, MissingArtifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Query: TypeAlias = str | bytes | NDArray[np.float32]

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


def read_query(image: Path | None, item: str | None, vector: Path | None) -> "Query":
    """The query of a search: the bytes of an image file, the id of an item, or a vector (D,).

    Raises:
        InvalidSetting: none of them is named.
    """
    if item is not None:
        return item
    if vector is not None:
        from dml.embedding.vector_files import read_vector

        query: NDArray[np.float32] = read_vector(vector)[0]
        return query
    if image is None:
        raise InvalidSetting("A search needs a query: an image file, --id ITEM or --vector FILE; got none.")
    return read_image(image)


def read_probe(path: Path) -> "bytes | NDArray[np.float32]":
    """An image file's bytes, or the one vector (D,) in a .npy file."""
    if path.suffix.lower() != ".npy":
        return read_image(path, "Check the path, or give a .npy file with one vector.")
    from dml.embedding.vector_files import read_vector

    vector: NDArray[np.float32] = read_vector(path)[0]
    return vector

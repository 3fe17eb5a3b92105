"""An embeddings table on storage: Parquet parts of id, image digest and vector, one per dataset fragment."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from dml import storage
from dml.errors import InvalidData
from dml.refs import EmbeddingsRef

_DIGEST = np.dtype("S64")  # hex SHA-256


@dataclass(frozen=True)
class EmbeddingTable:
    """An embeddings table in memory, in the order of the dataset's rows."""

    ids: pa.ChunkedArray
    """(N,) string."""
    vectors: NDArray[np.float32]
    """(N, D), unit length."""


def read_embeddings(ref: EmbeddingsRef) -> EmbeddingTable:
    """Read a table whole; memory: its vectors once, its ids once, and one part.

    Raises:
        InvalidData: it has another number of rows than its ref says.
    """
    vectors = np.empty((ref.rows, ref.dim), dtype=np.float32)
    ids: list[pa.ChunkedArray] = []
    end = 0
    for uri in part_uris(ref.uri):
        part = read_part(uri, ["id", "embedding"])
        start, end = end, end + len(part)
        if end <= ref.rows:
            vectors[start:end] = _vectors(part, ref.dim)
        ids.append(part["id"])
    if end != ref.rows:
        raise InvalidData(f"{ref.uri} must have {ref.rows} rows; it has {end}. Delete it and embed again.")
    return EmbeddingTable(
        pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string()), vectors
    )


def part_name(number: int) -> str:
    """Of the part made from the dataset's fragment of that number."""
    return f"part-{number:05d}.parquet"


def part_uris(uri: str) -> list[str]:
    """A table's finished parts in order."""
    return [storage.join(uri, name) for name in storage.list_names(uri) if name.endswith(".parquet")]


def read_part(uri: str, columns: list[str]) -> pa.Table:
    filesystem, path = storage.filesystem(uri)
    return parquet.read_table(
        path, columns=columns, filesystem=filesystem, partitioning=None, page_checksum_verification=True
    )


def write_part(
    uri: str, ids: pa.ChunkedArray, digests: pa.ChunkedArray, vectors: NDArray[np.float32]
) -> None:
    """Write one part; its name appears when it is whole.

    Args:
        uri: where.
        ids: (N,) string.
        digests: (N,) string, hex SHA-256 of each image.
        vectors: (N, D).
    """
    embedding = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("embedding", embedding.type, nullable=False),
        ]
    )
    table = pa.table({"id": ids, "sha256": digests, "embedding": embedding}, schema=schema)
    sink = pa.BufferOutputStream()
    compression = {"id": "ZSTD", "sha256": "ZSTD", "embedding": "NONE"}
    parquet.write_table(table, sink, compression=compression, use_dictionary=False, write_page_checksum=True)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


class KnownVectors:
    """The vectors of a table by the digests of their images; memory: 72 bytes per row, and one part."""

    def __init__(self, ref: EmbeddingsRef) -> None:
        self._dim = ref.dim
        self._uris = part_uris(ref.uri)
        parts = [
            read_part(uri, ["sha256"])["sha256"].to_numpy(zero_copy_only=False).astype(_DIGEST)
            for uri in self._uris
        ]
        self._starts = np.cumsum([0, *map(len, parts)])
        digests = np.concatenate(parts) if parts else np.empty(0, _DIGEST)
        self._order = np.argsort(digests, kind="stable")
        self._digests = digests[self._order]

    def rows_of(self, digests: pa.ChunkedArray) -> NDArray[np.int64]:
        """(N,) the row in the table of each image, -1 where it has none."""
        wanted = digests.to_numpy(zero_copy_only=False).astype(_DIGEST)
        if not len(self._digests):
            return np.full(len(wanted), -1)
        places = np.searchsorted(self._digests, wanted).clip(max=len(self._digests) - 1)
        return np.where(self._digests[places] == wanted, self._order[places], -1)

    def copy(self, rows: NDArray[np.int64], into: NDArray[np.float32]) -> None:
        """Fill (N, D) with the vectors of the table's rows; -1 leaves what is there."""
        for number, mine in self._by_part(rows):
            part = _vectors(read_part(self._uris[number], ["embedding"]), self._dim)
            into[mine] = part[rows[mine] - self._starts[number]]

    def _by_part(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        numbers = np.where(rows < 0, -1, np.searchsorted(self._starts, rows, side="right") - 1)
        for number in np.unique(numbers[numbers >= 0]):
            yield int(number), numbers == number


def _vectors(part: pa.Table, dim: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = part["embedding"].combine_chunks().flatten().to_numpy()
    return values.reshape(-1, dim)

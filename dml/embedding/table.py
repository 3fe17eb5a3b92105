"""An embeddings table on storage: Parquet parts of id, image digest and vector, one per dataset fragment.

The manifest lists the parts in the order of the dataset's fragments; names say nothing of order. Whoever
reads vectors gets them with ids that were compared with the dataset's.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from dml import storage
from dml.data.dataset import StoredFragment, first_position, fragments, read_fragment
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidSetting, MissingArtifact
from dml.refs import EmbeddingsRef, require_dataset

_FOLDER = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST = np.dtype("S64")  # hex SHA-256
_READ_THREADS = 8
_BLOCK_ROWS, _STREAM_BYTES = 1 << 13, 1 << 22
_REMEDY = "Remove it, and run `dml embed`, or what read it, again: it is made anew."


@dataclass(frozen=True)
class EmbeddingTable:
    """An embeddings table in memory, in the order of its items."""

    ids: pa.ChunkedArray
    """(N,) large_string: those that the items have there."""
    vectors: NDArray[np.float32]
    """(N, D), unit length."""
    positions: NDArray[np.int64]
    """(N,) the rows of the items."""


def read_embeddings(ref: EmbeddingsRef, *, split: str | None = None) -> EmbeddingTable:
    """Read a table, or the rows of one split; memory: the vectors once, the items' ids once, and one part.

    Args:
        ref: the table.
        split: only its rows; None: all that the table has.

    Raises:
        IncompatibleArtifact: the table is of another split, or of items without splits.
        CorruptArtifact: a file is damaged, or the table's rows are not its items, in their order.
    """
    vectors = np.empty((_num_rows(ref, split), ref.dim), dtype=np.float32)
    positions = np.empty(len(vectors), dtype=np.int64)
    chunks: list[pa.Array] = []
    start = 0
    for part in read_pieces(ref, split=split):
        stop = start + len(part.ids)
        vectors[start:stop], positions[start:stop] = part.vectors, part.positions
        chunks += part.ids.chunks
        start = stop
    return EmbeddingTable(pa.chunked_array(chunks, pa.large_string()), vectors, positions)


def read_pieces(ref: EmbeddingsRef, *, split: str | None = None) -> Iterator[EmbeddingTable]:
    """The rows of `read_embeddings`, some thousand at a time; memory: a few pieces, and ids read ahead.

    Raises:
        IncompatibleArtifact, CorruptArtifact: as `read_embeddings`; missing rows after the last piece.
    """
    num_rows, chosen = _num_rows(ref, split), split or ref.split
    start, first = 0, first_position(ref.items, ref.parts)
    for part, fragment, rows in _parts_and_rows(ref, of_split=chosen is not None):
        is_chosen = _is_of(rows, chosen)
        stop = start + int(is_chosen.sum())
        if start < stop <= num_rows:  # a part without chosen rows is not read
            held = _of_split(rows, ref.split)["id"]
            _refuse_other_samples(part, read_part(part, ["id"])["id"], fragment, held)
            kept = np.flatnonzero(is_chosen[_is_of(rows, ref.split)])
            ids = rows["id"].filter(pa.array(is_chosen)).cast(pa.large_string())
            positions = first + np.flatnonzero(is_chosen)
            begin = seen = 0
            for block in _vector_blocks(part, ref.dim):
                end = int(np.searchsorted(kept, seen + len(block)))
                vectors = block if end - begin == len(block) else block[kept[begin:end] - seen]
                yield EmbeddingTable(ids.slice(begin, end - begin), vectors, positions[begin:end])
                begin, seen = end, seen + len(block)
        start, first = stop, first + len(rows)
    if start != num_rows:
        raise CorruptArtifact(f"{ref.uri} must have {num_rows} rows; it has {start}. Embed again.")


def _num_rows(ref: EmbeddingsRef, split: str | None) -> int:
    if split is not None and ref.split not in (None, split):
        raise IncompatibleArtifact(
            f"The table must have embeddings of the split {split!r}; {ref.uri} has those of {ref.split!r}. "
            "Embed that split, or the whole dataset."
        )
    chosen = split or ref.split
    return ref.rows if chosen == ref.split else _size_of(ref, chosen)


def _parts_and_rows(ref: EmbeddingsRef, *, of_split: bool) -> Iterator[tuple[str, StoredFragment, pa.Table]]:
    """Each part, its items' fragment, and the fragment's `id`, and `split` if requested; read ahead."""
    parts, files = _part_uris_of(ref), fragments(ref.items, ref.parts)
    if len(parts) != len(files):
        raise CorruptArtifact(
            f"{ref.uri} must have a part for each of the {len(files)} fragments of {ref.items.uri}; it has "
            f"{len(parts)}. Remove the folder and embed again."
        )
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        columns = ["id", "split"] if of_split else ["id"]
        rows = pool.map(lambda file: read_fragment(file, columns), files)
        yield from zip(parts, files, rows, strict=True)


def _size_of(ref: EmbeddingsRef, split: str | None) -> int:
    dataset = require_dataset(ref.items, f"The split {split!r}")
    size = dataset.splits.get(split or "")
    return 0 if size is None else size.rows


def _is_of(rows: pa.Table, split: str | None) -> NDArray[np.bool_]:
    if split is None:
        return np.ones(len(rows), dtype=np.bool_)
    is_of: NDArray[np.bool_] = compute.equal(rows["split"], split).to_numpy(zero_copy_only=False)
    return is_of


def _of_split(rows: pa.Table, split: str | None) -> pa.Table:
    return rows if split is None else rows.filter(compute.equal(rows["split"], split))


def _refuse_other_samples(
    part: str, ids: pa.ChunkedArray, fragment: StoredFragment, expected: pa.ChunkedArray
) -> None:
    if not ids.equals(expected):
        raise CorruptArtifact(
            f"{part} must have the samples of {fragment.uri}, in their order; it has others. {_REMEDY}"
        )


def read_vectors(ref: EmbeddingsRef) -> Iterator[tuple[pa.ChunkedArray, NDArray[np.float32]]]:
    """The ids and the (n, D) vectors of each part, in the table's order; memory: one part."""
    for uri in _part_uris_of(ref):
        part = read_part(uri, ["id", "embedding"])
        yield part["id"], _vectors(part, ref.dim)


def rows_held(part: str, fragment: StoredFragment, split: str | None, *, whole: bool) -> int | None:
    """The number of rows of a part; None if it is missing, damaged or has not the fragment's samples.

    Args:
        part: the part's URI.
        fragment: the dataset's fragment.
        split: whose samples; None: all.
        whole: whether its vectors are read too, and compared with their checksums.
    """
    expected = _of_split(read_fragment(fragment, ["id", "split"]), split)["id"]
    try:
        ids = read_part(part, ["id", "sha256", "embedding"] if whole else ["id"])["id"]
    except (CorruptArtifact, MissingArtifact):
        return None
    return len(ids) if ids.equals(expected) else None


def seal_table(ref: EmbeddingsRef, parts: Mapping[str, int]) -> None:
    """Declare a table finished.

    Args:
        ref: the table.
        parts: each part's name and rows, in the order of the dataset's fragments.
    """
    storage.seal(
        ref.uri,
        {
            "ref": ref.model_dump(mode="json", exclude={"uri"}),
            "parts": [{"name": name, "rows": rows} for name, rows in parts.items()],
        },
    )


def named_embeddings(store: str, name: str) -> str:
    """The URI of a table: its folder's name in the store's `embeddings/`, or its own path or URI.

    Raises:
        InvalidSetting: neither.
    """
    if "/" in name:
        return name
    if not _FOLDER.fullmatch(name):
        raise InvalidSetting(
            "An embeddings table must be named by its folder in the store's embeddings/, of letters, digits, "
            f"'.', '_' and '-', or by a path or URI; got {name!r}."
        )
    return storage.join(store, "embeddings", name)


def find_embeddings(uri: str) -> EmbeddingsRef:
    """The table in a folder; raises MissingArtifact where none was finished."""
    return EmbeddingsRef(uri=uri, **storage.read_manifest(uri)["ref"])


def part_name(number: int) -> str:
    """The file name of the part for the dataset's fragment of that number."""
    return f"part-{number:05d}.parquet"


class SealedPart(NamedTuple):
    """A part of a finished table, and the SHA-256 of its file."""

    uri: str
    sha256: str


def sealed_parts(uri: str) -> list[SealedPart]:
    """A finished table's parts, in the order of the dataset's fragments."""
    files = storage.read_manifest(uri)["files"]
    return [SealedPart(part, files[part.rpartition("/")[2]]["sha256"]) for part in part_uris(uri)]


def copy_part(part: SealedPart, uri: str) -> bool:
    """Copy a part into another table; False, and no file, if it is damaged or gone."""
    try:
        content = storage.read_bytes(part.uri)
    except MissingArtifact:
        return False
    if storage.digest_of_bytes(content) != part.sha256:
        return False
    storage.write_new(uri, content)
    return True


def part_uris(uri: str) -> list[str]:
    """A finished table's parts, in the order of the dataset's fragments."""
    parts = storage.read_manifest(uri).get("parts")
    if parts is None:
        raise CorruptArtifact(
            f"{storage.join(uri, storage.MANIFEST)} must list the table's parts; it does not. Remove the "
            "folder and embed again."
        )
    return [storage.join(uri, part["name"]) for part in parts]


def _part_uris_of(ref: EmbeddingsRef) -> list[str]:
    """The URIs of the parts that a ref is of."""
    return part_uris(ref.uri)[slice(*ref.parts or (None,))]


def cut_table(ref: EmbeddingsRef, number: int) -> list[EmbeddingsRef]:
    """Cut a table into as many of about as many rows, between its parts.

    Returns:
        The same table with some of its parts each, in their order.

    Raises:
        InvalidSetting: it has fewer parts.
    """
    rows = [int(part["rows"]) for part in storage.read_manifest(ref.uri)["parts"]]
    held = [part for part, size in enumerate(rows) if size]
    if number > len(held):
        raise InvalidSetting(
            "index.shards must be at most the number of parts of the embeddings table, which are cut no "
            f"further; got {number}, and {ref.source} has {len(held)}. Use fewer, or one."
        )
    before = np.cumsum([0, *rows])
    cuts, first = [0], 1
    for cut in range(1, number):
        free = held[first : len(held) - (number - 1 - cut)]
        nearest = min(free, key=lambda part: abs(before[part] - ref.rows * cut / number))
        cuts.append(nearest)
        first = held.index(nearest) + 1
    cuts.append(len(rows))
    return [
        ref.model_copy(
            update={
                "parts": (start, stop),
                "rows": int(before[stop] - before[start]),
                "fingerprint": storage.digest_of(ref.fingerprint, start, stop),
            }
        )
        for start, stop in pairwise(cuts)
    ]


def read_part(uri: str, columns: list[str]) -> pa.Table:
    """Some columns of a part; page checksums are verified.

    Raises:
        CorruptArtifact: it is damaged.
    """
    filesystem, path = storage.filesystem(uri)
    with storage.reading(uri, _REMEDY):
        return parquet.read_table(
            path,
            columns=columns,
            filesystem=filesystem,
            partitioning=None,
            page_checksum_verification=True,
        )


def write_part(
    uri: str, ids: pa.ChunkedArray, digests: pa.ChunkedArray | None, vectors: NDArray[np.float32]
) -> None:
    """Write one part atomically; an existing part is kept.

    So of several processes that make the same table, none changes what another has sealed.

    Args:
        uri: where.
        ids: (N,) string.
        digests: (N,) string, hex SHA-256 of each image; None: there are no images.
        vectors: (N, D).
    """
    embedding = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    columns = {"id": ids, **({} if digests is None else {"sha256": digests}), "embedding": embedding}
    types = {"embedding": embedding.type}
    schema = pa.schema([pa.field(name, types.get(name, pa.string()), nullable=False) for name in columns])
    table = pa.table(columns, schema=schema)
    sink = pa.BufferOutputStream()
    compression = {name: "NONE" if name == "embedding" else "ZSTD" for name in columns}
    parquet.write_table(table, sink, compression=compression, use_dictionary=False, write_page_checksum=True)
    storage.write_new(uri, sink.getvalue().to_pybytes())


class KnownVectors:
    """The vectors of tables by the digests of their images; memory: 72 bytes per row, and one part.

    Args:
        tables: of one package; none: nothing is known.
        without: URIs of parts that are left out.
    """

    def __init__(self, *tables: EmbeddingsRef, without: Collection[str] = ()) -> None:
        self._uris = [uri for table in tables for uri in part_uris(table.uri) if uri not in without]
        self._dim = tables[0].dim if tables else 0
        parts = [
            read_part(uri, ["sha256"])["sha256"].to_numpy(zero_copy_only=False).astype(_DIGEST)
            for uri in self._uris
        ]
        self._starts = np.cumsum([0, *map(len, parts)])
        digests = np.concatenate(parts) if parts else np.empty(0, _DIGEST)
        self._order = np.argsort(digests, kind="stable")
        self._digests = digests[self._order]

    def rows_of(self, digests: pa.ChunkedArray) -> NDArray[np.int64]:
        """(N,) the row of each image in the tables, -1 if there is none."""
        wanted = digests.to_numpy(zero_copy_only=False).astype(_DIGEST)
        if not len(self._digests):
            return np.full(len(wanted), -1)
        positions = np.searchsorted(self._digests, wanted).clip(max=len(self._digests) - 1)
        return np.where(self._digests[positions] == wanted, self._order[positions], -1)

    def copy(self, rows: NDArray[np.int64], into: NDArray[np.float32]) -> None:
        """Fill (N, D) with the vectors of the tables' rows; -1 leaves a row unchanged."""
        for number, mine in self._by_part(rows):
            part = _vectors(read_part(self._uris[number], ["embedding"]), self._dim)
            into[mine] = part[rows[mine] - self._starts[number]]

    def _by_part(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        numbers = np.where(rows < 0, -1, np.searchsorted(self._starts, rows, side="right") - 1)
        for number in np.unique(numbers[numbers >= 0]):
            yield int(number), numbers == number


def _vector_blocks(uri: str, dim: int) -> Iterator[NDArray[np.float32]]:
    """(n, D) the vectors of a part. Reading it whole takes three times its memory, beside it."""
    filesystem, path = storage.filesystem(uri)
    with (
        storage.reading(uri, _REMEDY),
        parquet.ParquetFile(
            path,
            filesystem=filesystem,
            pre_buffer=False,
            buffer_size=_STREAM_BYTES,
            page_checksum_verification=True,
        ) as file,
    ):
        for batch in file.iter_batches(_BLOCK_ROWS, columns=["embedding"]):
            yield batch.column(0).flatten().to_numpy().reshape(-1, dim)


def _vectors(part: pa.Table, dim: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = part["embedding"].combine_chunks().flatten().to_numpy()
    return values.reshape(-1, dim)

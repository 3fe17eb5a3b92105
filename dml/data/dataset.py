"""Reading of datasets: refs, rows, and images by position.

A row's position is its index in the dataset, counted over all fragments in order. A fragment can be a file
that several versions share, of which each can leave out rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from dml import storage
from dml.data.schema import CLASS_ID, IMAGE, POSITION, SCHEMA_VERSION, TEST, TRAIN
from dml.errors import DmlError, IncompatibleArtifact, InvalidSetting, MissingArtifact
from dml.names import split_version
from dml.refs import DatasetRef, ItemsRef

_READ_THREADS = 8
_REMEDY = "Ingest its source again to make the version again."


def has_dataset(store: str, name: str) -> bool:
    """Whether a dataset of a name was published."""
    return bool(storage.list_versions(storage.named_folder(store, "datasets", name)))


def find_dataset(store: str, name: str) -> DatasetRef:
    """A published dataset version.

    Args:
        store: the store's URI.
        name: NAME for its current version, or NAME@VERSION.

    Raises:
        InvalidSetting: the name is invalid.
        MissingArtifact: there is no such dataset or version.
        CorruptArtifact: files are missing or have a different size.
        IncompatibleArtifact: it was written by another version of this project.
    """
    name, version = split_version(name, "dataset")
    if not has_dataset(store, name) and storage.list_versions(storage.named_folder(store, "vectors", name)):
        raise MissingArtifact(
            f"Dataset {name!r} must have images; {name} are imported vectors, which have none. Index, "
            "search, evaluate and export them, or ingest the images under another name: dml ingest SOURCE "
            "--name OTHER."
        )
    return read_ref(storage.find_version(storage.named_folder(store, "datasets", name), version, "dataset"))


def list_versions(store: str, damaged: list[DmlError] | None = None) -> list[storage.Version[DatasetRef]]:
    """Every published version, by name, then the oldest first; `damaged` as in `storage.read_versions`."""
    return storage.read_versions(storage.join(store, "datasets"), read_ref, damaged)


def list_datasets(store: str) -> list[DatasetRef]:
    """The refs of `list_versions`."""
    return [version.ref for version in list_versions(store)]


def read_ref(uri: str, manifest: Mapping[str, Any] | None = None) -> DatasetRef:
    """The ref of a published version.

    Args:
        uri: its folder.
        manifest: its manifest, if it was already read.

    Raises:
        CorruptArtifact, MissingArtifact: as `storage.read_manifest`.
        IncompatibleArtifact: it was written by another version of this project.
    """
    ref = DatasetRef(uri=uri, **(manifest or storage.read_manifest(uri))["ref"])
    require_schema(ref)
    return ref


def require_schema(ref: ItemsRef) -> None:
    """Raise IncompatibleArtifact if a dataset was written by another version of this project."""
    if ref.schema_version != SCHEMA_VERSION:
        raise IncompatibleArtifact(
            f"A dataset must have schema version {SCHEMA_VERSION} for this program; {ref.uri} has "
            f"{ref.schema_version}. Use the version of this project that made it, or ingest its source into "
            "another store."
        )


class StoredFragment(NamedTuple):
    """A Parquet file of items, and which of its rows belong to them."""

    uri: str
    rows: int
    deleted: tuple[int, ...] = ()
    """Rows of the file that do not belong to the items, ascending."""

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]

    def file_rows(self) -> NDArray[np.int64]:
        """(rows,) the rows of the file that belong to the items."""
        return np.delete(np.arange(self.rows + len(self.deleted), dtype=np.int64), list(self.deleted))


def fragments(ref: ItemsRef, numbers: tuple[int, int] | None = None) -> list[StoredFragment]:
    """The items' Parquet files, in the order that positions count.

    Args:
        ref: the dataset, or items without images.
        numbers: only those from the first to before the last; None: all.

    Raises:
        IncompatibleArtifact: the version was made again with its rows in another order.
    """
    manifest = storage.read_manifest(ref.uri)
    if isinstance(ref, DatasetRef) and ref.order != manifest["ref"].get("order", ref.order):
        raise IncompatibleArtifact(
            f"The rows of a dataset must be in the order that their embeddings and indexes were made from; "
            f"{ref.uri} was made again in another. Embed and index it again."
        )
    return fragments_in(ref.uri, manifest)[slice(*numbers or (None,))]


def fragments_in(uri: str, manifest: Mapping[str, Any]) -> list[StoredFragment]:
    """The fragments that a version's manifest lists."""
    shared = manifest.get("shared", {})
    return [
        StoredFragment(
            storage.shared_file(uri, entry["name"])
            if entry["name"] in shared
            else storage.join(uri, entry["name"]),
            entry["rows"],
            tuple(entry.get("deleted", ())),
        )
        for entry in manifest["fragments"]
    ]


def first_position(ref: ItemsRef, numbers: tuple[int, int] | None) -> int:
    """The position of the first row of `fragments`."""
    if numbers is None:
        return 0
    return sum(entry["rows"] for entry in storage.read_manifest(ref.uri)["fragments"][: numbers[0]])


def read_rows(
    ref: ItemsRef,
    *,
    split: str | None = None,
    columns: Sequence[str] | None = None,
    numbers: tuple[int, int] | None = None,
) -> pa.Table:
    """Rows in the order of their positions.

    Args:
        ref: the dataset, or items without images.
        split: only rows of this split, which may be none; None: all.
        columns: the columns wanted; `class_id` is the number of a row's label among all labels of the
            version, sorted, from 0. None: all that are stored, but the image.
        numbers: only the rows of these `fragments`; None: of all.

    Returns:
        The columns, text and bytes with 64-bit offsets, `class_id` and `position` int64.

    Raises:
        InvalidSetting: a split that is neither train nor test, or a column that the dataset does not have.
    """
    if split not in (None, TRAIN, TEST):
        raise InvalidSetting(f"split must be {TRAIN} or {TEST}; got {split!r}.")
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        stored = None
        if columns is not None:
            wanted = [*columns, *([] if split is None else ["split"])]
            stored = ["label" if name == CLASS_ID else name for name in wanted]
        parts = pool.map(
            lambda fragment: with_wide_offsets(read_fragment(fragment, stored)), fragments(ref, numbers)
        )
        table = pa.concat_tables(parts)
    positions = np.arange(len(table), dtype=np.int64) + first_position(ref, numbers)
    table = table.append_column(POSITION, pa.array(positions))
    if columns is not None and CLASS_ID in columns:
        table = table.append_column(CLASS_ID, pa.array(_class_ids(table["label"])))
    if split is not None:
        table = table.filter(compute.equal(table["split"], split))
    return table if columns is None else table.select(list(dict.fromkeys([*columns, POSITION])))


def read_row_parts(
    ref: ItemsRef, *, split: str | None = None, numbers: tuple[int, int] | None = None
) -> Iterator[pa.Table]:
    """The rows of `read_rows`, with all that is stored but the image, fragment by fragment."""
    first = first_position(ref, numbers)
    for fragment in fragments(ref, numbers):
        table = with_wide_offsets(read_fragment(fragment))
        positions = np.arange(first, first + len(table), dtype=np.int64)
        first += len(table)
        table = table.append_column(POSITION, pa.array(positions))
        yield table if split is None else table.filter(compute.equal(table["split"], split))


def _class_ids(labels: pa.ChunkedArray) -> NDArray[np.int64]:
    """(N,) the index of each label among the sorted distinct labels."""
    encoded = labels.combine_chunks().dictionary_encode()
    class_id: NDArray[np.int64] = np.empty(len(encoded.dictionary), dtype=np.int64)
    class_id[compute.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(class_id))
    ids: NDArray[np.int64] = class_id[encoded.indices.to_numpy()]
    return ids


def with_wide_offsets(table: pa.Table) -> pa.Table:
    """The same rows, with 64-bit offsets for text and bytes.

    `take` concatenates a column, and 32-bit offsets end at 2 GiB: 33.5 million digests of 64 characters.
    """
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    return table.cast(
        pa.schema([field.with_type(wide.get(field.type, field.type)) for field in table.schema])
    )


def read_values(ref: DatasetRef, name: str, *, split: str) -> tuple[NDArray[np.int64], list[Any]]:
    """A dictionary-encoded column of a split: the value index of each row, and the values.

    A missing value counts as the value None. Raises InvalidSetting as `read_rows`.
    """
    column = read_rows(ref, split=split, columns=[name])[name].combine_chunks()
    encoded = column.dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def read_fragment(fragment: StoredFragment, columns: Sequence[str] | None = None) -> pa.Table:
    """The given columns of one fragment's rows; None: all except the image.

    Raises:
        InvalidSetting: a column does not exist.
        CorruptArtifact: the file is damaged.
    """
    with opened_fragment(fragment.uri) as file:
        names = file.schema_arrow.names
        selected = [n for n in names if n != IMAGE] if columns is None else list(dict.fromkeys(columns))
        unknown = sorted(set(selected) - set(names))
        if unknown:
            raise InvalidSetting(f"columns must be among {names}; got {unknown}.")
        table = file.read(columns=selected)
    return table.take(fragment.file_rows()) if fragment.deleted else table


@contextmanager
def opened_fragment(uri: str) -> Iterator[parquet.ParquetFile]:
    """An open fragment that verifies its page checksums on reading."""
    filesystem, path = storage.filesystem(uri)
    with (
        storage.reading(uri, _REMEDY),
        parquet.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file,
    ):
        yield file


def read_images(ref: DatasetRef, positions: Sequence[int]) -> list[bytes]:
    """The image files of a few rows, read directly from Parquet, in the order of `positions`."""
    stored = fragments(ref)
    starts = np.cumsum([0, *(fragment.rows for fragment in stored)])
    image_at: dict[int, bytes] = {}
    order = np.unique(np.asarray(positions, dtype=np.int64))
    _check_positions(order, ref.rows)
    for number in np.unique(np.searchsorted(starts, order, side="right") - 1):
        in_fragment = order[(order >= starts[number]) & (order < starts[number + 1])]
        groups = read_fragment_images(stored[number], in_fragment - starts[number])
        images = [image for group in groups for image in group]
        image_at.update(zip(in_fragment.tolist(), images, strict=True))
    return [image_at[int(position)] for position in positions]


def read_fragment_images(fragment: StoredFragment, rows: NDArray[np.int64]) -> Iterator[list[bytes]]:
    """The images of ascending rows of a fragment, one row group at a time; other groups are not read."""
    rows = fragment.file_rows()[rows] if fragment.deleted else rows
    with opened_fragment(fragment.uri) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        for group in range(file.num_row_groups):
            rows_of_group = rows[(rows >= starts[group]) & (rows < starts[group + 1])] - starts[group]
            if len(rows_of_group):
                column = file.read_row_group(group, columns=[IMAGE])[IMAGE]
                yield [column[row].as_py() for row in rows_of_group.tolist()]


def _check_positions(positions: NDArray[np.int64], num_rows: int) -> None:
    if len(positions) and not 0 <= positions.min() <= positions.max() < num_rows:
        raise ValueError(f"positions must be in [0, {num_rows}); got {positions.min()} to {positions.max()}.")

"""Reading a published dataset: its rows without images, a few images, or all of them memory-mapped."""

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from dml import storage
from dml.data.schema import IMAGE, dataset_schema
from dml.errors import MissingArtifact
from dml.refs import DatasetRef


def find_dataset(store: str, name: str) -> DatasetRef:
    """The dataset of a name (its current version) or `NAME@VERSION`.

    Raises:
        MissingArtifact: there is none, with those there are.
    """
    base, _, version = name.partition("@")
    folder = storage.join(store, "datasets", base)
    return _read_ref(storage.find_version(folder, version or None, "dataset"))


def list_datasets(store: str) -> list[DatasetRef]:
    """Every version of every dataset in the store."""
    root = storage.join(store, "datasets")
    folders = [storage.join(root, name) for name in storage.list_names(root)]
    versions = [storage.join(folder, name) for folder in folders for name in storage.list_names(folder)]
    return [_read_ref(uri) for uri in versions if storage.is_complete(uri)]


def _read_ref(uri: str) -> DatasetRef:
    return DatasetRef(uri=uri, **storage.read_manifest(uri)["ref"])


def fragments(ref: DatasetRef) -> dict[str, int]:
    """URI of each Parquet fragment to its number of rows, in the order of the dataset's rows."""
    counts: dict[str, int] = storage.read_manifest(ref.uri)["fragments"]
    return {storage.join(ref.uri, name): rows for name, rows in sorted(counts.items())}


def read_rows(ref: DatasetRef, *, split: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The dataset's rows in order, with their `position`.

    Args:
        ref: the dataset.
        split: only the rows of this one; positions still count the whole dataset's rows.
        columns: which of the schema's columns; None: all but the image.
    """
    wanted = list(columns) if columns is not None else dataset_schema(ref.attributes, images=False).names
    read = [*wanted, *(["split"] if split is not None and "split" not in wanted else [])]
    parts = [_read_fragment(uri, read) for uri in fragments(ref)]
    table = pa.concat_tables(parts).append_column("position", pa.array(np.arange(ref.rows)))
    if split is not None:
        table = table.filter(pa.compute.equal(table["split"], split)).select([*wanted, "position"])
    return table


def _read_fragment(uri: str, columns: Sequence[str]) -> pa.Table:
    filesystem, path = storage.filesystem(uri)
    return parquet.read_table(path, columns=list(columns), filesystem=filesystem, partitioning=None)


def read_fragment(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One fragment of a dataset: all columns with the images, or the named ones."""
    if columns is not None:
        return _read_fragment(uri, columns)
    filesystem, path = storage.filesystem(uri)
    return parquet.read_table(path, filesystem=filesystem, partitioning=None)


def read_images(ref: DatasetRef, positions: Sequence[int]) -> list[bytes]:
    """The files of a handful of rows, each read from its row group; no cache is made.

    Args:
        ref: the dataset.
        positions: row numbers in the dataset, in any order.
    """
    ends = np.cumsum(list(fragments(ref).values()))
    uris = list(fragments(ref))
    found: dict[int, bytes] = {}
    for number in np.unique(np.searchsorted(ends, positions, side="right")):
        filesystem, path = storage.filesystem(uris[number])
        start = int(ends[number - 1]) if number else 0
        inside = [p - start for p in positions if start <= p < ends[number]]
        with parquet.ParquetFile(path, filesystem=filesystem) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            group_ends = np.cumsum(sizes)
            for group in np.unique(np.searchsorted(group_ends, inside, side="right")):
                first = int(group_ends[group]) - sizes[group]
                images = file.read_row_group(int(group), columns=[IMAGE])[IMAGE]
                for row in inside:
                    if first <= row < first + sizes[group]:
                        found[start + row] = images[row - first].as_py()
    return [found[position] for position in positions]


class MappedDataset:
    """A dataset's image files in one memory-mapped Arrow file: reading one is a slice, not a parse.

    The operating system shares the pages between a machine's workers and drops them when memory is short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.memory_map(str(path)) as source:
            batches = pa.ipc.open_file(source)
            columns = [batches.get_batch(i).column(0) for i in range(batches.num_record_batches)]
        self._columns = columns
        self._ends = np.cumsum([len(column) for column in columns])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def image(self, position: int) -> bytes:
        """The file of one row; IndexError beyond the last."""
        if not 0 <= position < len(self):
            raise IndexError(f"position must be within [0, {len(self)}); got {position}.")
        part = int(np.searchsorted(self._ends, position, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        content: bytes = self._columns[part][position - start].as_py()
        return content

    def images(self, positions: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        return [self.image(int(position)) for position in positions]


def open_mapped(ref: DatasetRef) -> MappedDataset:
    """The dataset's images, copied once per machine into the cache and then mapped.

    Raises:
        MissingArtifact: the dataset is gone.
    """
    path = storage.cache_dir() / "rows" / f"{ref.fingerprint}.arrow"
    if not path.exists():
        _copy_images(ref, path)
    return MappedDataset(path)


def _copy_images(ref: DatasetRef, path: Path) -> None:
    """Several processes may do this at once: each writes aside, and the last rename wins with the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(file["size_bytes"] for file in storage.read_manifest(ref.uri)["files"].values())
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise MissingArtifact(
            f"The cache in {path.parent} needs {needed >> 20} MiB for {ref.name}@{ref.version}; "
            f"{free >> 20} MiB are free. Make room, or set DML_CACHE to a larger disk."
        )
    aside = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    schema = pa.schema([(IMAGE, pa.large_binary())])
    try:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for uri in fragments(ref):
                images = _read_fragment(uri, [IMAGE]).cast(schema).combine_chunks()
                writer.write_table(images)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)

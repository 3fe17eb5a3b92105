"""The rows of a former version without their images, of which some files may be damaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from dml import storage
from dml.data.dataset import StoredFragment, fragments_in, read_fragment
from dml.data.fragment import CopiedRow
from dml.data.sources.sample import Sample
from dml.errors import DmlError, StorageUnavailable
from dml.refs import AttributeType, DatasetRef

IDS = "ids.parquet"
"""The ids of a version in the order of their positions: which rows a damaged fragment had."""


@dataclass(frozen=True)
class FormerRows:
    """The rows of a former version without their images; nothing if there is none."""

    fragments: Sequence[StoredFragment] = ()
    damaged: frozenset[int] = frozenset()
    """The numbers of fragments that cannot be read: their rows are made again at the same positions."""
    ids: Sequence[str] = ()
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The other columns by name; None in the rows of damaged fragments."""
    attributes: Mapping[str, AttributeType] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    """The shared files as the version's manifest lists them."""

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The position of each fragment's first row, and the number of rows."""
        return np.cumsum([0, *(fragment.rows for fragment in self.fragments)])

    @cached_property
    def fragment_of(self) -> NDArray[np.int64]:
        """(N,) the number of each row's fragment."""
        return np.repeat(np.arange(len(self.fragments)), [fragment.rows for fragment in self.fragments])

    @cached_property
    def position_of(self) -> dict[str, int]:
        """The position of each id."""
        return {id_: position for position, id_ in enumerate(self.ids)}

    def is_readable(self, position: int) -> bool:
        """Whether the row's fragment is not damaged."""
        return int(self.fragment_of[position]) not in self.damaged

    def copied(self, position: int) -> CopiedRow:
        """Where the image of a row is."""
        fragment = self.fragments[self.fragment_of[position]]
        row = int(
            self._file_rows[self.fragment_of[position]][position - self.starts[self.fragment_of[position]]]
        )
        sha256, width, height = (self.columns[name][position] for name in ("sha256", "width", "height"))
        return CopiedRow(fragment.uri, row, sha256, width, height)

    @cached_property
    def _file_rows(self) -> list[NDArray[np.int64]]:
        return [fragment.file_rows() for fragment in self.fragments]

    def equals(self, position: int, sample: Sample) -> bool:
        """Whether a row has the label, split and attributes of a sample."""
        return (
            self.columns["label"][position] == sample.label
            and self.columns["split"][position] == sample.split
            and all(self.columns[name][position] == sample.attributes.get(name) for name in self.attributes)
        )


def read_former_rows(ref: DatasetRef, *, thorough: bool) -> FormerRows:
    """The rows of a version, of which some files may be damaged.

    Args:
        ref: the version.
        thorough: compare every byte of it with its manifest first, not only sizes and times.

    Raises:
        CorruptArtifact: its manifest is damaged.
    """
    manifest = storage.read_manifest(ref.uri)
    changed = storage.damaged_files(ref.uri) if thorough else storage.changed_files(ref.uri, manifest)
    changed_names = {name.rpartition("/")[2] for name in changed}
    stored = fragments_in(ref.uri, manifest)
    names = ["label", "split", "width", "height", "sha256", *ref.attributes]
    damaged, tables = set(), []
    for number, fragment in enumerate(stored):
        try:
            if fragment.name in changed_names:
                raise LookupError
            tables.append(read_fragment(fragment, ["id", *names]))
        except StorageUnavailable:
            raise
        except (DmlError, LookupError):
            damaged.add(number)
            tables.append(pa.table({name: pa.nulls(fragment.rows) for name in ["id", *names]}))
    table = pa.concat_tables(tables, promote_options="permissive")
    ids = table["id"].to_pylist()
    if damaged:
        ids = _read_ids(ref) or [id_ or "" for id_ in ids]
    columns = {name: table[name].to_pylist() for name in names}
    return FormerRows(stored, frozenset(damaged), ids, columns, ref.attributes, manifest.get("shared", {}))


def _read_ids(ref: DatasetRef) -> list[str] | None:
    uri = storage.join(ref.uri, IDS)
    try:
        with storage.opened(uri) as (filesystem, path):
            table = parquet.read_table(path, filesystem=filesystem, page_checksum_verification=True)
    except StorageUnavailable:
        raise
    except (OSError, pa.ArrowException):
        return None
    ids: list[str] = table["id"].to_pylist()
    return ids if len(ids) == ref.rows else None


def write_ids(folder: str, ids: Sequence[str]) -> None:
    """Write the table of ids into a version that is being made."""
    filesystem, path = storage.filesystem(storage.join(folder, IDS))
    table = pa.table({"id": pa.array(ids, pa.large_string())})
    parquet.write_table(table, path, filesystem=filesystem, compression="ZSTD", write_page_checksum=True)

"""The files of an index version, verified and opened memory-mapped.

`index.faiss` is what Faiss searches, `vectors.faiss` the flat vectors (an index that is flat is both), and
`items.arrow` ids and attributes: row i of one is row i of the others. `attributes` holds indexes of the
items' columns, `first_stage.faiss` the codes of a cascade's first stage, if there is one, and
`calibration.json` what was measured, if anything.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from dml import storage
from dml.errors import CorruptArtifact, IncompatibleArtifact
from dml.progress import count
from dml.refs import IndexRef
from dml.reports import FirstStageChoice, IndexOption, OperatingCurve, StageMates
from dml.retrieval.attributes import FOLDER, AttributeIndexes, open_attributes
from dml.retrieval.query_costs import Costs
from dml.retrieval.recall_table import RecallTable
from dml.retrieval.vectors import FlatVectors

INDEX_FILE, VECTORS_FILE, ITEMS_FILE = "index.faiss", "vectors.faiss", "items.arrow"
FIRST_STAGE_FILE = "first_stage.faiss"
CALIBRATION_FILE = "calibration.json"
INDEX_FORMAT = 4
_MOST_CHUNK_ROWS = 1 << 20  # 32-bit offsets are enough for a chunk's text, at 2 KiB an item
_CHUNK_BYTES = 1 << 26
_ROWS_AT_ONCE = 1 << 16
_FEW_ROWS = 16
_NARROW = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
REMEDY = "`dml verify --repair` builds the index again."


class Items:
    """The items of an index: columns, and rows by number.

    Rows are taken chunk by chunk: `take` on a whole column of text would copy it into one array, which ends
    at 2 GiB, 33.5 million digests.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._chunks = table.to_batches()
        self._columns = [chunk.columns for chunk in self._chunks]
        self._starts = np.cumsum([0, *map(len, self._chunks)])

    def take(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The rows with these numbers (N,)."""
        if len(rows) <= _FEW_ROWS:
            return self._take_few(rows)
        if len(self._chunks) == 1:
            items: list[dict[str, Any]] = self._chunks[0].take(_row_numbers(rows)).to_pylist()
            return items
        items = [{}] * len(rows)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            positions = np.flatnonzero(numbers == number)
            in_chunk = _row_numbers(rows[positions] - self._starts[number])
            for position, item in zip(
                positions, self._chunks[number].take(in_chunk).to_pylist(), strict=True
            ):
                items[position] = item
        return items

    def _take_few(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Value by value: 10 rows of 10 columns take 45 us, where each chunk to take from takes 40."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        places = zip(numbers.tolist(), (rows - self._starts[numbers]).tolist(), strict=True)
        names = self.table.column_names
        return [
            {name: column[row].as_py() for name, column in zip(names, self._columns[number], strict=True)}
            for number, row in places
        ]


def write_items(folder: Path, parts: Iterable[pa.Table]) -> None:
    """Write the items, some at a time, in chunks as large as fit.

    Args:
        folder: of this machine.
        parts: some rows each, in order, with 64-bit offsets.
    """
    gathered: list[pa.Table] = []
    with (folder / ITEMS_FILE).open("wb") as file, ExitStack() as stack:
        writer = None
        for part in parts:
            schema = pa.schema(
                [field.with_type(_NARROW.get(field.type, field.type)) for field in part.schema]
            )
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_file(file, schema))
            gathered.append(part)
            count(len(part))
            rows, size = sum(map(len, gathered)), sum(table.nbytes for table in gathered)
            if rows >= _MOST_CHUNK_ROWS or size >= _CHUNK_BYTES:
                _write_chunk(writer, gathered, schema)
                gathered = []
        if gathered and writer is not None:
            _write_chunk(writer, gathered, schema)


def read_items(folder: Path) -> pa.Table:
    """The items that `write_items` wrote, memory-mapped."""
    with pa.memory_map(str(folder / ITEMS_FILE)) as source:
        return pa.ipc.open_file(source).read_all()


def in_order(items: pa.Table, order: NDArray[np.int64]) -> Iterator[pa.Table]:
    """The rows of a table in another order, some at a time, for `write_items`."""
    chunks = items.to_batches()
    starts = np.cumsum([0, *map(len, chunks)])
    for start in range(0, len(order), _ROWS_AT_ONCE):
        rows = order[start : start + _ROWS_AT_ONCE]
        by_row = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[by_row], starts)
        parts = [
            chunk.take(_row_numbers(rows[by_row[begin:end]] - first))
            for chunk, first, begin, end in zip(chunks, starts[:-1], ends[:-1], ends[1:], strict=True)
            if begin < end
        ]
        places = np.empty_like(by_row)
        places[by_row] = np.arange(len(rows))
        yield pa.Table.from_batches(parts).take(_row_numbers(places))


def _write_chunk(writer: pa.ipc.RecordBatchFileWriter, tables: list[pa.Table], schema: pa.Schema) -> None:
    writer.write_table(pa.concat_tables(tables).combine_chunks().cast(schema))


class Calibration(BaseModel):
    """What was planned before an index was built, and measured then; each part may be absent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    planned: IndexOption | None = None

    recall_table: RecallTable | None = None
    costs: Costs | None = None
    operating_curve: OperatingCurve | None = None
    first_stage: FirstStageChoice | None = None
    stages: tuple[StageMates, ...] = ()

    @property
    def recall(self) -> float:
        """recall@10 of searches without a filter."""
        if self.first_stage is not None and self.first_stage.chosen is not None:
            return self.first_stage.chosen.recall
        return 1.0 if self.operating_curve is None else self.operating_curve.chosen.recall


def read_calibration(ref: IndexRef) -> Calibration:
    """What was planned and measured of an index; with a remote store it is downloaded once per machine.

    Of an index in shards it is that of the shard with the least recall.

    Raises:
        MissingArtifact, CorruptArtifact: its files are not those that were published.
        IncompatibleArtifact: an older version of this program made them.
    """
    if ref.shards:
        recalls = [shard.recall for shard in ref.shards]
        ref = ref.shard(recalls.index(min(recalls)))
    folder = storage.fetch(ref.uri, ref.fingerprint)
    manifest = storage.read_manifest(str(folder))
    _refuse_other_formats(ref, manifest.get("format"))
    return _calibration_in(folder, manifest, ref)


def _calibration_in(folder: Path, manifest: Mapping[str, Any], ref: IndexRef) -> Calibration:
    if CALIBRATION_FILE not in manifest["files"]:
        return Calibration()
    try:
        return Calibration.model_validate_json((folder / CALIBRATION_FILE).read_bytes())
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise IncompatibleArtifact(
            f"The calibration of an index must have the fields of this program; that of {ref} differs in "
            f"{field}. Build it again: dml reindex {ref.name}, or dml index {ref.name}."
        ) from error


def _refuse_other_formats(ref: IndexRef, found: int | None) -> None:
    if found != INDEX_FORMAT:
        raise IncompatibleArtifact(
            f"An index must have format {INDEX_FORMAT} for this program; {ref} has {found or 1}. "
            f"Build it again: dml reindex {ref.name}, or dml index {ref.name}."
        )


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write what was planned and measured; nothing where nothing was."""
    if calibration != Calibration():
        (folder / CALIBRATION_FILE).write_text(calibration.model_dump_json(indent=1), encoding="utf-8")


@dataclass(frozen=True)
class Bundle:
    """An opened index version."""

    ref: IndexRef
    index: faiss.Index
    vectors: FlatVectors
    items: Items
    attributes: AttributeIndexes
    calibration: Calibration
    first_stage: faiss.Index | None = None
    """Of the same rows; None: it was built without."""


def open_bundle(ref: IndexRef) -> Bundle:
    """Open the files of an index version; with a remote store they are downloaded once per machine.

    Raises:
        MissingArtifact, CorruptArtifact: they are not those that were published.
        IncompatibleArtifact: an older version of this program made them, or they are in shards.
    """
    if ref.shards:
        raise IncompatibleArtifact(
            f"This needs an index of one bundle; {ref} has {len(ref.shards)} shards. Build it without "
            "--shards."
        )
    folder = storage.fetch(ref.uri, ref.fingerprint)
    manifest = storage.read_manifest(str(folder))
    _refuse_other_formats(ref, manifest.get("format"))
    index_path, vectors_path = folder / INDEX_FILE, folder / VECTORS_FILE
    try:
        index = faiss.read_index(str(index_path), faiss.IO_FLAG_MMAP_IFC)
        if VECTORS_FILE in manifest["files"]:
            vectors = FlatVectors(str(vectors_path))
        else:
            vectors = FlatVectors(str(index_path), index)
        first_stage = None
        if FIRST_STAGE_FILE in manifest["files"]:
            first_stage = faiss.read_index(str(folder / FIRST_STAGE_FILE), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, ValueError) as error:
        raise CorruptArtifact(
            f"{ref.uri} must be as it was published; Faiss cannot read it: "
            f"{str(error).rsplit(': ', 1)[-1]}. {REMEDY}"
        ) from error
    with storage.reading(f"{ref.uri}/{ITEMS_FILE}", REMEDY):
        items = Items(read_items(folder))
        published = sorted(name for name in manifest["files"] if name.startswith(f"{FOLDER}/"))
        attributes = open_attributes([folder / name for name in published], items.table)
    sizes = index.ntotal, vectors.rows, len(items.table)
    if (*sizes, vectors.dim) != (ref.rows, ref.rows, ref.rows, ref.embeddings.dim):
        raise CorruptArtifact(
            f"Index {ref.uri} must have {ref.rows} vectors and items of {ref.embeddings.dim} dimensions; its "
            f"files have {sizes[0]}, {sizes[1]} and {sizes[2]}, of {vectors.dim}. {REMEDY}"
        )
    if first_stage is not None and first_stage.ntotal != ref.rows:
        raise CorruptArtifact(
            f"The first stage of {ref.uri} must have {ref.rows} rows; it has {first_stage.ntotal}. {REMEDY}"
        )
    calibration = _calibration_in(folder, manifest, ref)
    return Bundle(ref, index, vectors, items, attributes, calibration, first_stage)


def _row_numbers(rows: NDArray[np.int64]) -> pa.Array:
    """Row numbers as an Arrow array; `pa.array` would import pandas, which takes a third of a second."""
    return pa.Array.from_buffers(pa.int64(), rows.size, [None, pa.py_buffer(np.ascontiguousarray(rows))])

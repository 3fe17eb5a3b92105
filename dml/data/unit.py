"""One unit of an ingest: a fragment's samples are read, validated and written, on any worker alike."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import compute, parquet

from dml import storage
from dml.config import IngestConfig
from dml.data.schema import IMAGE, dataset_schema, open_fragment
from dml.data.sources.sample import Problem, Refused, Sample, Source
from dml.errors import DmlError
from dml.preprocessing import UnreadableImage, decode
from dml.refs import AttributeType


@dataclass(frozen=True)
class Unit:
    """What a worker needs to make one fragment."""

    number: int
    source: Source
    samples: Sequence[Sample]
    """With the split that was decided for their class."""
    class_indices: Sequence[int]
    attributes: Mapping[str, AttributeType]
    staged: str
    config: IngestConfig

    @property
    def fragment(self) -> str:
        return f"fragment-{self.number:08d}.parquet"

    @property
    def uri(self) -> str:
        return storage.join(self.staged, self.fragment)


class Row(NamedTuple):
    """What is remembered of a written row."""

    sample: Sample
    class_index: int
    sha256: str

    @property
    def label(self) -> str:
        return self.sample.label

    @property
    def split(self) -> str:
        assert self.sample.split is not None
        return self.sample.split


class Result(NamedTuple):
    number: int
    rows: list[Row]
    problems: list[Problem]


def make_fragment(unit: Unit, on_sample: Callable[[], None] | None = None) -> Result:
    """Validate a unit's samples and write the good ones, holding one row group's images at a time.

    Args:
        unit: the samples.
        on_sample: called after each one, valid or not.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    schema = dataset_schema(unit.attributes)
    with open_fragment(unit.uri, schema) as writer:
        for group in _groups(_records(unit, rows, problems, on_sample), unit.config):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    if not rows:
        storage.delete(unit.uri)
    return Result(unit.number, rows, problems)


def _records(
    unit: Unit, rows: list[Row], problems: list[Problem], on_sample: Callable[[], None] | None
) -> Iterator[dict[str, Any]]:
    for number in range(len(unit.samples)):
        yield from _read_sample(unit, number, rows, problems)
        if on_sample is not None:
            on_sample()


def _groups(records: Iterable[dict[str, Any]], config: IngestConfig) -> Iterator[list[dict[str, Any]]]:
    """Records in row groups of at most so many rows and bytes; Arrow's offsets end at 2 GiB."""
    group: list[dict[str, Any]] = []
    size_bytes = 0
    for record in records:
        size_bytes += len(record[IMAGE])
        if len(group) == config.rows_per_group or (group and size_bytes > config.bytes_per_group):
            yield group
            group, size_bytes = [], len(record[IMAGE])
        group.append(record)
    if group:
        yield group


def _read_sample(unit: Unit, number: int, rows: list[Row], problems: list[Problem]) -> list[dict[str, Any]]:
    """The record of one of a unit's samples, or none; adds to its rows or problems."""
    sample, class_index = unit.samples[number], unit.class_indices[number]
    try:
        content, (width, height) = _validated(unit.source, sample, unit.config)
    except Refused as refusal:
        problems.append(problem_of(sample, refusal.reason, refusal.detail))
        return []
    row = Row(sample, class_index, hashlib.sha256(content).hexdigest())
    rows.append(row)
    return [
        {
            **{name: sample.attributes.get(name) for name in unit.attributes},
            "id": sample.id,
            "label": sample.label,
            "class_index": class_index,
            "split": sample.split,
            "width": width,
            "height": height,
            "sha256": row.sha256,
            IMAGE: content,
        }
    ]


def _validated(source: Source, sample: Sample, config: IngestConfig) -> tuple[bytes, tuple[int, int]]:
    """The file's bytes and the upright (width, height); raises Refused. An unreachable storage raises on."""
    try:
        content = source.read(sample.locator, config.max_bytes)
    except (Refused, DmlError, MemoryError):
        raise
    except Exception as error:  # what others made fails in ways that nobody foresaw
        raise Refused("unreadable file", f"{type(error).__name__}: {error}") from error
    if not content:
        raise Refused("empty file", "0 bytes")
    try:
        return content, decode(content, "RGB", max_pixels=config.max_pixels).size
    except UnreadableImage as error:
        raise Refused(error.reason, str(error)) from error


def rewrite(unit: Unit, rows: Sequence[Row], class_index: Mapping[str, int]) -> str | None:
    """Keep only these rows of a unit's fragment, with other class indices; the new file's name, if any."""
    name = f"kept-{unit.fragment}"
    ids = pa.array([row.sample.id for row in rows], pa.string())
    target = storage.join(unit.staged, name)
    kept = copy_fragment(unit.uri, target, lambda table: compute.is_in(table["id"], ids), class_index)
    storage.delete(unit.uri)
    return name if kept else None


def copy_fragment(
    source: str,
    target: str,
    choose: Callable[[pa.Table], pa.ChunkedArray],
    class_index: Mapping[str, int],
) -> int:
    """Copy chosen rows of a fragment, one row group at a time; nothing is written where there are none.

    Args:
        source: the fragment's URI.
        target: that of the copy.
        choose: from some rows to whether each is copied, (N,) bool.
        class_index: of each label that is left.

    Returns:
        How many rows the copy has.

    Raises:
        CorruptArtifact: the fragment is damaged.
    """
    filesystem, path = storage.filesystem(source)
    num_rows = 0
    with (
        storage.reading(source, "Ingest its source again: the version is made anew."),
        parquet.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file,
        open_fragment(target, file.schema_arrow) as writer,
    ):
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            table = table.filter(choose(table))
            if len(table):
                column = table.schema.get_field_index("class_index")
                indices = pa.array([class_index[label] for label in table["label"].to_pylist()], pa.int32())
                writer.write_table(table.set_column(column, table.schema.field(column), indices))
                num_rows += len(table)
    if not num_rows:
        storage.delete(target)
    return num_rows


def problem_of(sample: Sample, reason: str, detail: str) -> Problem:
    return Problem(sample.id, sample.label, sample.locator, reason, detail)

"""One unit of an ingest: a fragment's samples are read, validated and written, on any worker alike."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import compute, parquet

from dml import storage
from dml.config import IngestConfig
from dml.data.schema import dataset_schema, open_fragment
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
    size, schema = unit.config.rows_per_group, dataset_schema(unit.attributes)
    with open_fragment(unit.uri, schema) as writer:
        for start in range(0, len(unit.samples), size):
            group = []
            for number in range(start, min(start + size, len(unit.samples))):
                group += _read_sample(unit, number, rows, problems)
                if on_sample is not None:
                    on_sample()
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
    if not rows:
        storage.delete(unit.uri)
    return Result(unit.number, rows, problems)


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
            "image": content,
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


def rewrite(unit: Unit, rows: Sequence[Row], class_index: Mapping[str, int]) -> None:
    """Keep only these rows of a fragment, with other class indices; without any, remove it."""
    filesystem, path = storage.filesystem(unit.uri)
    table = parquet.read_table(path, filesystem=filesystem)
    storage.delete(unit.uri)
    if rows:
        table = table.filter(compute.is_in(table["id"], pa.array([row.sample.id for row in rows])))
        column = table.schema.get_field_index("class_index")
        indices = pa.array([class_index[row.label] for row in rows], pa.int32())
        table = table.set_column(column, table.schema.field(column), indices)
        with open_fragment(unit.uri, table.schema) as writer:
            writer.write_table(table, row_group_size=unit.config.rows_per_group)


def problem_of(sample: Sample, reason: str, detail: str) -> Problem:
    return Problem(sample.id, sample.label, sample.locator, reason, detail)

"""Fragments: samples in, one validated Parquet file out; independent of the worker that makes it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from dml import storage
from dml.config import IngestConfig
from dml.data.schema import IMAGE, Fragment, dataset_schema, write_fragment
from dml.data.sources.sample import Problem, Refused, Sample, Source
from dml.errors import DmlError
from dml.preprocessing import UnreadableImage, decode
from dml.refs import AttributeType


@dataclass(frozen=True)
class FragmentJob:
    """The input of a worker that makes one fragment."""

    number: int
    source: Source
    samples: Sequence[Sample]
    """Their split is that of their class."""
    attributes: Mapping[str, AttributeType]
    staged: str
    config: IngestConfig

    @property
    def temporary_name(self) -> str:
        """The file's name until it is finished; the same when the job is started again."""
        return f".fragment-{self.number:08d}"


class Row(NamedTuple):
    """A written row, without its image."""

    sample: Sample
    sha256: str

    @property
    def label(self) -> str:
        return self.sample.label

    @property
    def split(self) -> str:
        assert self.sample.split is not None
        return self.sample.split


class FragmentResult(NamedTuple):
    number: int
    fragment: Fragment | None
    """None if no sample is valid."""
    rows: list[Row]
    problems: list[Problem]


def make_fragment(job: FragmentJob, on_sample: Callable[[], None] | None = None) -> FragmentResult:
    """Validate a job's samples and write the valid ones; holds one row group's images in memory.

    Args:
        job: the samples.
        on_sample: called after each one, valid or not.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    schema = dataset_schema(job.attributes)
    records = _records(job, rows, problems, on_sample)
    groups = _row_groups(records, schema, job.config)
    return FragmentResult(
        job.number,
        write_fragment(job.staged, groups, schema, temporary_name=job.temporary_name),
        rows,
        problems,
    )


def _records(
    job: FragmentJob, rows: list[Row], problems: list[Problem], on_sample: Callable[[], None] | None
) -> Iterator[dict[str, Any]]:
    for number in range(len(job.samples)):
        yield from _read_sample(job, number, rows, problems)
        if on_sample is not None:
            on_sample()


def _row_groups(
    records: Iterable[dict[str, Any]], schema: pa.Schema, config: IngestConfig
) -> Iterator[pa.Table]:
    """Records in tables within the row and byte limits of a row group; Arrow's offsets end at 2 GiB."""
    group: list[dict[str, Any]] = []
    size_bytes = 0
    for record in records:
        size_bytes += len(record[IMAGE])
        if len(group) == config.rows_per_group or (group and size_bytes > config.bytes_per_group):
            yield pa.Table.from_pylist(group, schema=schema)
            group, size_bytes = [], len(record[IMAGE])
        group.append(record)
    if group:
        yield pa.Table.from_pylist(group, schema=schema)


def _read_sample(
    job: FragmentJob, number: int, rows: list[Row], problems: list[Problem]
) -> list[dict[str, Any]]:
    """The record of a job's sample as a list, empty if invalid; appends to `rows` or `problems`."""
    sample = job.samples[number]
    try:
        content, (width, height) = _validated(job.source, sample, job.config)
    except Refused as refusal:
        problems.append(make_problem(sample, refusal.reason, refusal.detail))
        return []
    row = Row(sample, hashlib.sha256(content).hexdigest())
    rows.append(row)
    return [
        {
            **{name: sample.attributes.get(name) for name in job.attributes},
            "id": sample.id,
            "label": sample.label,
            "split": sample.split,
            "width": width,
            "height": height,
            "sha256": row.sha256,
            IMAGE: content,
        }
    ]


def _validated(source: Source, sample: Sample, config: IngestConfig) -> tuple[bytes, tuple[int, int]]:
    """The file's bytes and the upright (width, height); raises Refused, or DmlError if storage fails."""
    try:
        content = source.read(sample.locator, config.max_bytes)
    except (Refused, DmlError, MemoryError):
        raise
    except Exception as error:  # files of others can fail in any way
        raise Refused("unreadable file", f"{type(error).__name__}: {error}") from error
    if not content:
        raise Refused("empty file", "0 bytes")
    try:
        return content, decode(content, "RGB", max_pixels=config.max_pixels).size
    except UnreadableImage as error:
        raise Refused(error.reason, str(error)) from error


def keep_rows(job: FragmentJob, fragment: Fragment, rows: Sequence[Row]) -> Fragment | None:
    """Keep only these rows of a job's fragment; None if there are none."""
    uri, ids = storage.join(job.staged, fragment.name), {row.sample.id for row in rows}
    kept = copy_fragment(
        uri, job.staged, job.config, keep=lambda id_: id_ in ids, temporary_name=job.temporary_name
    )
    storage.delete(uri)
    return kept


def copy_fragment(
    uri: str, folder: str, config: IngestConfig, *, keep: Callable[[str], bool], temporary_name: str
) -> Fragment | None:
    """Write the fragment that has some rows of another, holding two row groups' images at a time.

    Args:
        uri: the other's.
        folder: where to.
        config: how many rows and bytes a row group has.
        keep: from a row's id to whether it is copied.
        temporary_name: as `write_fragment`.

    Returns:
        The file; None where there are no such rows.

    Raises:
        CorruptArtifact: the other is damaged.
    """
    filesystem, path = storage.filesystem(uri)
    with (
        storage.reading(uri, "Ingest its source again: the version is made anew."),
        parquet.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file,
    ):
        groups = (file.read_row_group(number) for number in range(file.num_row_groups))
        records = (record for group in groups for record in group.to_pylist() if keep(record["id"]))
        schema = file.schema_arrow
        return write_fragment(
            folder, _row_groups(records, schema, config), schema, temporary_name=temporary_name
        )


def cut(samples: Sequence[Sample], most: int) -> list[Sequence[Sample]]:
    """Samples in fragments of at most `most` rows, in their order, a class whole where it fits.

        cut(samples) = [samples] if they fit, else cut(those before c) + cut(c and those after it),
        where c begins the class whose label has the smallest hash (within one class: has the smallest id's)

    So a cut depends only on nearby rows: added or removed rows change no fragment that is more than `most`
    rows away, whereas counting rows from the start would move every later cut. Fragments are half full on
    average, like the parts of a quicksort that stops at that size.

    Args:
        samples: sorted by label, then by id.
        most: maximum rows of a fragment.

    Source: Seidel and Aragon 1996, "Randomized search trees": the cuts are the upper nodes of a treap.
    """
    keys = np.array([_cut_key(samples, row) for row in range(len(samples))], dtype=np.uint64)
    parts, pending = [], [(0, len(samples))]
    while pending:
        start, end = pending.pop()
        if end - start <= most:
            parts.append(samples[start:end])
        else:
            middle = start + 1 + int(keys[start + 1 : end].argmin())
            pending += [(middle, end), (start, middle)]
    return parts


def _cut_key(samples: Sequence[Sample], row: int) -> int:
    """Priority of a cut before this row: the smallest key first, and class starts before other rows."""
    sample = samples[row]
    begins_class = row == 0 or samples[row - 1].label != sample.label
    text = sample.label if begins_class else sample.id
    digest = storage.digest_of_bytes(text.encode("utf-8", errors="surrogatepass"))
    return int(digest[:15], 16) + (0 if begins_class else 1 << 60)


def make_problem(sample: Sample, reason: str, detail: str) -> Problem:
    return Problem(sample.id, sample.label, sample.locator, reason, detail)

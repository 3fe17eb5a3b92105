"""Fragments: samples in, one validated Parquet file out; independent of the worker that makes it."""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from dml import storage
from dml.config import IngestConfig
from dml.data.dataset import StoredFragment, read_fragment
from dml.data.schema import IMAGE, Fragment, dataset_schema, write_fragment
from dml.data.sources.sample import Problem, Refused, Sample, Source
from dml.errors import DmlError
from dml.preprocessing import UnreadableImage, decode
from dml.refs import AttributeType

_OPEN_FRAGMENTS, _HELD_BYTES = 64, 256 << 20
"""Files and bytes of row groups that a job which copies from many fragments holds at a time."""


class CopiedRow(NamedTuple):
    """A row of a fragment whose image a new row has too, so that the source's file is not read."""

    uri: str
    row: int
    """Of the file, deleted ones counted."""
    sha256: str
    width: int
    height: int


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
    copied: Mapping[int, CopiedRow] = field(default_factory=dict)
    """Where the image of a sample is, by its index in `samples`; the others are read from the source."""
    unchanged: Mapping[int, str] = field(default_factory=dict)
    """The SHA-256 of a sample's image, by index, if a row of the former version has all its other values:
    with that content it is not written again."""

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
    """The rows of the fragment."""
    problems: list[Problem]
    unchanged: list[Row]
    """Rows that were read, and that the former version has already."""
    files_read: int
    """From the source."""
    bytes_read: int


def make_fragment(job: FragmentJob, on_sample: Callable[[], None] | None = None) -> FragmentResult:
    """Validate a job's samples and write the valid ones; holds one row group's images in memory.

    Args:
        job: the samples.
        on_sample: called after each one, valid or not.
    """
    reader = _SampleReader(job)
    schema = dataset_schema(job.attributes)
    with closing(reader.images):
        groups = _row_groups(_records(job, reader, on_sample), schema, job.config)
        fragment = write_fragment(job.staged, groups, schema, temporary_name=job.temporary_name)
    return FragmentResult(
        job.number,
        fragment,
        reader.rows,
        reader.problems,
        reader.unchanged,
        reader.files_read,
        reader.bytes_read,
    )


def _records(
    job: FragmentJob, reader: "_SampleReader", on_sample: Callable[[], None] | None
) -> Iterator[dict[str, Any]]:
    for number in range(len(job.samples)):
        if (record := reader.record(number)) is not None:
            yield record
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


class _SampleReader:
    """Reads a job's samples in their order, from the source or from other fragments."""

    def __init__(self, job: FragmentJob) -> None:
        self.job, self.images = job, _Images()
        self.rows: list[Row] = []
        self.problems: list[Problem] = []
        self.unchanged: list[Row] = []
        self.files_read = self.bytes_read = 0

    def record(self, number: int) -> dict[str, Any] | None:
        """The record of a sample; None if it is invalid, or need not be written."""
        sample, copied = self.job.samples[number], self.job.copied.get(number)
        if copied is not None:
            content, size = self.images.read(copied), (copied.width, copied.height)
            row = Row(sample, copied.sha256)
        else:
            self.files_read += 1
            try:
                content, size = _validated(self.job.source, sample, self.job.config)
            except Refused as refusal:
                self.problems.append(make_problem(sample, refusal.reason, refusal.detail))
                return None
            self.bytes_read += len(content)
            row = Row(sample, hashlib.sha256(content).hexdigest())
            if self.job.unchanged.get(number) == row.sha256:
                self.unchanged.append(row)
                return None
        self.rows.append(row)
        return {
            **{name: sample.attributes.get(name) for name in self.job.attributes},
            "id": sample.id,
            "label": sample.label,
            "split": sample.split,
            "width": size[0],
            "height": size[1],
            "sha256": row.sha256,
            IMAGE: content,
        }


class _Images:
    """Images of fragments by row; keeps a few files open, and a few row groups in memory."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, tuple[parquet.ParquetFile, list[int]]] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()

    def read(self, copied: CopiedRow) -> bytes:
        """The image; raises CorruptArtifact if the fragment is damaged."""
        with storage.reading(copied.uri, "Ingest its source again: the version is made anew."):
            file, starts = self._open(copied.uri)
            group = bisect_right(starts, copied.row) - 1
            key = (copied.uri, group)
            if key not in self._groups:
                self._groups[key] = file.read_row_group(group, columns=[IMAGE])[IMAGE]
                while len(self._groups) > 1 and sum(g.nbytes for g in self._groups.values()) > _HELD_BYTES:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            return bytes(self._groups[key][copied.row - starts[group]].as_py())

    def _open(self, uri: str) -> tuple[parquet.ParquetFile, list[int]]:
        if uri not in self._files:
            filesystem, path = storage.filesystem(uri)
            file = parquet.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True)
            sizes = (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
            self._files[uri] = file, list(accumulate(sizes, initial=0))[:-1]
            if len(self._files) > _OPEN_FRAGMENTS:
                self._files.popitem(last=False)[1][0].close()
        self._files.move_to_end(uri)
        return self._files[uri]

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._files.values():
            file.close()


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
    written = read_fragment(StoredFragment(uri, fragment.rows), ["id"])["id"].to_pylist()
    keep = {row for row, id_ in enumerate(written) if id_ in ids}
    kept = copy_fragment(uri, job.staged, job.config, keep=keep, temporary_name=job.temporary_name)
    storage.delete(uri)
    return kept


def copy_fragment(
    uri: str, folder: str, config: IngestConfig, *, keep: Container[int], temporary_name: str
) -> Fragment | None:
    """Write the fragment that has some rows of another, holding two row groups' images at a time.

    Args:
        uri: the other's.
        folder: where to.
        config: how many rows and bytes a row group has.
        keep: the rows of the file that are copied.
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
        rows = enumerate(record for group in groups for record in group.to_pylist())
        records = (record for row, record in rows if row in keep)
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

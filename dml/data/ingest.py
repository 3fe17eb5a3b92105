"""From a source to a published dataset: listed, split, validated in units, written aside, then published.

A unit is the rows of one fragment. It is read, decoded and written on its own, by a thread of this process or
by Ray, with the same result to the byte. What cannot become a row goes to the quarantine table and the rest
goes on. A killed ingest leaves nothing visible.
"""

import hashlib
import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import compute, parquet

from dml import storage
from dml.cluster import ray_session
from dml.config import IngestConfig
from dml.data.dataset import find_dataset
from dml.data.schema import (
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    attribute_types,
    dataset_schema,
    open_fragment,
)
from dml.data.sources.detect import open_source
from dml.data.sources.sample import Listing, Problem, Sample, Source
from dml.data.split import split_of_classes
from dml.errors import DmlError, InvalidData, MissingArtifact
from dml.preprocessing import OversizedImage, decode, image_size
from dml.refs import AttributeType, DatasetRef, SplitSize

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine.parquet"
# Ray takes some 12 s to start on 2 cores; two threads validate and write that many small images meanwhile.
_SMALL_SOURCE_ROWS = 25_000
_ABANDONED_AFTER_S = 24 * 3600

OnProgress = Callable[[int, int], None]
"""Receives how many units are done, and how many there are."""


def ingest(config: IngestConfig, store: str, progress: OnProgress | None = None) -> DatasetRef:
    """Make a dataset version of a source and point the dataset's name at it.

    Args:
        config: the source and how to read it.
        store: the store's URI.
        progress: called after each unit.

    Returns:
        The version. The same content gives the same version, and no second copy, wherever it came from and
        however many workers read it.

    Raises:
        InvalidData: no known layout, no valid row, a split that cannot be, or attributes of mixed types.
        MissingArtifact: there is no such source.
        InvalidSetting: the split or the source cannot be followed.
    """
    source = open_source(config.source, config.layout)
    listing = _list(source, config)
    samples, problems = _screen(listing.samples)
    problems += listing.problems
    if not samples:
        raise _nothing_valid(config, problems)
    split_of = split_of_classes(samples, config.split or listing.split)
    attributes = attribute_types([sample.attributes for sample in samples])

    parent = storage.join(store, "datasets", config.name)
    storage.delete_abandoned(parent, older_than_s=_ABANDONED_AFTER_S)
    staged = storage.staging(storage.join(parent, "ingest"))
    try:
        units = _units(config, source, samples, split_of, attributes, staged)
        results = _results(units, config.num_workers, len(samples), progress)
        fragments, contradictions = _reconcile(units, results)
        problems += [problem for result in results for problem in result.problems] + contradictions
        rows = [row for fragment in fragments for row in fragment.rows]
        if {row.split for row in rows} != set(split_of.values()) or not rows:
            raise _nothing_valid(config, problems)
        _write_quarantine(storage.join(staged, QUARANTINE), problems)
        fingerprint = _fingerprint(rows, attributes)
        final = storage.join(parent, fingerprint[:12])
        ref = DatasetRef(
            uri=final,
            fingerprint=fingerprint,
            name=config.name,
            rows=len(rows),
            classes=len({row.label for row in rows}),
            splits=_split_sizes(rows),
            quarantined=len(problems),
            attributes=attributes,
            schema_version=SCHEMA_VERSION,
        )
        storage.publish(
            staged,
            final,
            {
                "ref": ref.model_dump(mode="json", exclude={"uri"}),
                "fragments": [{"name": f.name, "rows": len(f.rows)} for f in fragments],
                "ingest": config.model_dump(mode="json"),
            },
        )
    except BaseException:
        storage.delete(staged)
        raise
    storage.point(parent, ref.version)
    return find_dataset(store, f"{ref.name}@{ref.version}")


def _list(source: Source, config: IngestConfig) -> Listing:
    try:
        return source.list()
    except DmlError:
        raise
    except (LookupError, ValueError) as error:
        raise InvalidData(
            f"The lists of {config.source} must be as its layout has them; reading them failed: {error!r}. "
            "Download it again, or name another layout."
        ) from error


def _screen(samples: Sequence[Sample]) -> tuple[list[Sample], list[Problem]]:
    """Samples with a label and an id of their own, by class and id, so that a class lies together."""
    labels_of: dict[str, set[str]] = {}
    for sample in samples:
        labels_of.setdefault(sample.id, set()).add(sample.label)
    kept: dict[str, Sample] = {}
    problems = []
    for sample in samples:
        if not sample.label.strip():
            problems.append(_problem(sample, "missing label", "the label is blank"))
        elif len(labels_of[sample.id]) > 1:
            detail = f"this id also has the labels {sorted(labels_of[sample.id] - {sample.label})}"
            problems.append(_problem(sample, "contradictory label", detail))
        elif sample.id in kept:
            problems.append(_problem(sample, "duplicate id", f"as {kept[sample.id].locator}"))
        else:
            kept[sample.id] = sample
    return sorted(kept.values(), key=lambda sample: (sample.label, sample.id)), problems


def _problem(sample: Sample, reason: str, detail: str) -> Problem:
    return Problem(sample.id, sample.label, sample.locator, reason, detail)


def _nothing_valid(config: IngestConfig, problems: Sequence[Problem]) -> InvalidData:
    reasons = dict(Counter(problem.reason for problem in problems).most_common(5))
    examples = [f"{problem.locator}: {problem.detail}" for problem in problems[:3]]
    return InvalidData(
        f"A dataset needs valid images in each of its splits; {config.source} has none left in one of them. "
        f"In quarantine: {reasons}, such as {examples}."
    )


# --- one unit -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unit:
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
        return f"fragment-{self.number:05d}.parquet"

    @property
    def uri(self) -> str:
        return storage.join(self.staged, self.fragment)


class _Row(NamedTuple):
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


class _Result(NamedTuple):
    number: int
    rows: list[_Row]
    problems: list[Problem]


class _Refused(Exception):
    """A sample that cannot become a row."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


def _units(
    config: IngestConfig,
    source: Source,
    samples: Sequence[Sample],
    split_of: Mapping[str, str],
    attributes: Mapping[str, AttributeType],
    staged: str,
) -> list[_Unit]:
    class_index = {label: index for index, label in enumerate(sorted(split_of))}
    units = []
    for number, start in enumerate(range(0, len(samples), config.rows_per_fragment)):
        own = [s._replace(split=split_of[s.label]) for s in samples[start : start + config.rows_per_fragment]]
        indices = [class_index[sample.label] for sample in own]
        units.append(_Unit(number, source, own, indices, attributes, staged, config))
    return units


def _make_fragment(unit: _Unit) -> _Result:
    """Validate a unit's samples and write the good ones, holding one row group's images at a time."""
    rows: list[_Row] = []
    problems: list[Problem] = []
    size, schema = unit.config.rows_per_group, dataset_schema(unit.attributes)
    with open_fragment(unit.uri, schema) as writer:
        for start in range(0, len(unit.samples), size):
            group = _read_group(unit, range(start, min(start + size, len(unit.samples))), rows, problems)
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
    if not rows:
        storage.delete(unit.uri)
    return _Result(unit.number, rows, problems)


def _read_group(
    unit: _Unit, numbers: range, rows: list[_Row], problems: list[Problem]
) -> list[dict[str, Any]]:
    """The records of those of a unit's samples that are valid; adds to its rows and problems."""
    records = []
    for number in numbers:
        sample, class_index = unit.samples[number], unit.class_indices[number]
        try:
            content, (width, height) = _validated(unit.source, sample, unit.config)
        except _Refused as refusal:
            problems.append(_problem(sample, refusal.reason, refusal.detail))
            continue
        row = _Row(sample, class_index, hashlib.sha256(content).hexdigest())
        rows.append(row)
        records.append(
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
        )
    return records


def _validated(source: Source, sample: Sample, config: IngestConfig) -> tuple[bytes, tuple[int, int]]:
    """The file's bytes and the upright (width, height); raises _Refused. An unreachable storage raises on."""
    try:
        content = source.read(sample.locator)
    except (MissingArtifact, FileNotFoundError) as error:
        raise _Refused("missing file", str(error)) from error
    except (InvalidData, PermissionError, IsADirectoryError) as error:
        raise _Refused("unreadable file", str(error)) from error
    if not content:
        raise _Refused("empty file", "0 bytes")
    if len(content) > config.max_bytes:
        raise _Refused("too many bytes", f"{len(content)} bytes; max_bytes is {config.max_bytes}")
    try:
        width, height = image_size(content)
    except OversizedImage as error:
        raise _Refused("too many pixels", str(error)) from error
    except InvalidData as error:
        raise _Refused("not an image", str(error)) from error
    if width * height > config.max_pixels:
        raise _Refused("too many pixels", f"{width} x {height}; max_pixels is {config.max_pixels}")
    try:
        return content, decode(content, "RGB").size
    except InvalidData as error:
        raise _Refused("truncated or damaged", str(error)) from error


# --- all units ------------------------------------------------------------------------------------------


def _results(
    units: Sequence[_Unit], num_workers: int | None, num_samples: int, progress: OnProgress | None
) -> list[_Result]:
    here = num_workers == 1 or (num_workers is None and num_samples < _SMALL_SOURCE_ROWS)
    results = []
    for result in _by_threads(units) if here else _by_ray(units, num_workers):
        results.append(result)
        if progress is not None:
            progress(len(results), len(units))
    return sorted(results)


def _by_threads(units: Sequence[_Unit]) -> Iterator[_Result]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_make_fragment, units)


def _by_ray(units: Sequence[_Unit], num_workers: int | None) -> Iterator[_Result]:
    import ray

    with ray_session(num_workers):
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        # Pickled, since Arrow would make tables of what is ours; one block a unit, so that each is a task.
        items = [{"unit": pickle.dumps(unit)} for unit in units]
        done = ray.data.from_items(items, override_num_blocks=len(items)).map(_make_pickled)
        for row in done.iter_rows():
            yield pickle.loads(row["result"])


def _make_pickled(row: dict[str, bytes]) -> dict[str, bytes]:
    return {"result": pickle.dumps(_make_fragment(pickle.loads(row["unit"])))}


@dataclass(frozen=True)
class _Fragment:
    name: str
    rows: Sequence[_Row]


def _reconcile(units: Sequence[_Unit], results: Sequence[_Result]) -> tuple[list[_Fragment], list[Problem]]:
    """Settle what only the whole shows: one image under two labels, and classes that lost all their rows."""
    others = _contradictions(results)
    problems = []
    if others and not units[0].config.quarantine_contradictions:
        logger.warning("%d images stand under several labels each; they are kept as they are", len(others))
        others = {}
    for digest, row in ((row.sha256, row) for result in results for row in result.rows):
        if digest in others:
            detail = f"the same bytes have the labels {others[digest]}"
            problems.append(_problem(row.sample, "contradictory label", detail))
    kept = [[row for row in result.rows if row.sha256 not in others] for result in results]
    class_index = {label: i for i, label in enumerate(sorted({row.label for rows in kept for row in rows}))}
    for unit, result, rows in zip(units, results, kept, strict=True):
        if rows != result.rows or any(row.class_index != class_index[row.label] for row in rows):
            _rewrite(unit, rows, class_index)
    fragments = [_Fragment(unit.fragment, rows) for unit, rows in zip(units, kept, strict=True) if rows]
    return fragments, problems


def _contradictions(results: Sequence[_Result]) -> dict[str, list[str]]:
    """The labels of each image (by digest) that has more than one: one is wrong, and nobody can tell which.

    Published data sets have them (22 rows of CARS196's training half), and results are compared with them in.
    """
    labels_of: dict[str, set[str]] = {}
    for result in results:
        for row in result.rows:
            labels_of.setdefault(row.sha256, set()).add(row.label)
    return {digest: sorted(labels) for digest, labels in labels_of.items() if len(labels) > 1}


def _rewrite(unit: _Unit, rows: Sequence[_Row], class_index: Mapping[str, int]) -> None:
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


def _write_quarantine(uri: str, problems: Sequence[Problem]) -> None:
    rows = [problem._asdict() for problem in sorted(problems)]
    filesystem, path = storage.filesystem(uri)
    parquet.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA), path, filesystem=filesystem)


def _split_sizes(rows: Sequence[_Row]) -> dict[str, SplitSize]:
    num_rows = Counter(row.split for row in rows)
    num_classes = Counter(split for split, _ in {(row.split, row.label) for row in rows})
    return {name: SplitSize(rows=num_rows[name], classes=num_classes[name]) for name in sorted(num_rows)}


def _fingerprint(rows: Iterable[_Row], attributes: Mapping[str, AttributeType]) -> str:
    """SHA-256 of what the rows say, by id: the same for any order, place and number of workers."""
    digest = hashlib.sha256(storage.digest_of(SCHEMA_VERSION, dict(attributes)).encode())
    for row in sorted(rows, key=lambda row: row.sample.id):
        values = [_value(row.sample.attributes.get(name), kind) for name, kind in attributes.items()]
        digest.update(storage.digest_of(row.sample.id, row.sha256, row.label, row.split, values).encode())
    return digest.hexdigest()


def _value(value: Any, kind: AttributeType) -> Any:
    return float(value) if kind == "double" and value is not None else value

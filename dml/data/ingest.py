"""A source becomes a dataset version: every image decoded once, the bad ones set aside with a reason.

The work is cut into units of neighbouring samples; each becomes one Parquet fragment. Small sources are
worked through in this process, larger ones by Ray Data on all cores, with the same bytes as the result.
"""

import hashlib
import io
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from dml import storage
from dml.cluster import ray_session
from dml.config import IngestConfig
from dml.data.schema import (
    IMAGE,
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    attribute_types,
    dataset_schema,
    write_fragment,
)
from dml.data.sources.detect import open_source
from dml.data.sources.sample import Problem, Sample, Source
from dml.data.split import split_classes
from dml.errors import DmlError, InvalidData
from dml.preprocessing import decode
from dml.refs import AttributeType, DatasetRef, SplitSize

logger = logging.getLogger(__name__)

_SMALL_SOURCE = 10_000
"""Up to so many images this process is done before Ray has started."""

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Unit:
    """Neighbouring samples that become one fragment: all a worker needs to know."""

    number: int
    source: Source
    samples: Sequence[Sample]
    splits: dict[str, str]
    class_indices: dict[str, int]
    attributes: dict[str, AttributeType]
    config: IngestConfig
    staged: str


@dataclass(frozen=True)
class _UnitResult:
    """What is left of a unit: its rows without images, and what went to quarantine."""

    number: int
    rows: pa.Table
    problems: list[Problem]


def ingest(config: IngestConfig, store: str, progress: OnProgress | None = None) -> DatasetRef:
    """Make a dataset version from a source, and make it the current one.

    The same content gives the same fingerprint, however often, from wherever and with however many workers it
    is read; a version that exists is not written twice.

    Args:
        config: name, source, split and limits.
        store: the store's URI.
        progress: called with (units done, units in all).

    Raises:
        MissingArtifact, InvalidData, InvalidSetting: a source that is not there, has no usable image, or
            cannot be split as asked. A single bad image is never an error: it goes to quarantine.
    """
    source = open_source(config.source, config.layout)
    listing = source.scan()
    samples, problems = _usable(listing.samples)
    problems = [*listing.problems, *problems]
    if not samples:
        raise InvalidData(
            f"A dataset needs at least one labelled image; {config.source} has none "
            f"({len(problems)} problems, such as {problems[:3]})."
        )
    splits = split_classes(samples, config.split or listing.split)
    folder = storage.join(store, "datasets", config.name)
    staged = storage.staging(storage.join(folder, "version"))
    try:
        units = list(_units(source, samples, splits, config, staged))
        results = _run(units, config, len(samples), progress)
        problems += [problem for result in results for problem in result.problems]
        problems += _contradictions(results, staged, config)
        return _publish(results, problems, units[0].attributes, config, folder, staged)
    finally:
        storage.delete(staged)


def _usable(samples: Sequence[Sample]) -> tuple[list[Sample], list[Problem]]:
    """Samples with a label and an id of their own, by class and id, so that a class's rows lie together."""
    problems, seen, usable = [], set(), []
    for sample in samples:
        if not sample.label.strip():
            problems.append(Problem(sample.id, "", sample.locator, "no label", "the label is empty"))
        elif sample.id in seen:
            detail = "an earlier sample has the same id"
            problems.append(Problem(sample.id, sample.label, sample.locator, "duplicate id", detail))
        else:
            seen.add(sample.id)
            usable.append(sample)
    return sorted(usable, key=lambda sample: (sample.label, sample.id)), problems


def _units(
    source: Source, samples: Sequence[Sample], splits: dict[str, str], config: IngestConfig, staged: str
) -> Iterator[_Unit]:
    class_indices = {label: index for index, label in enumerate(sorted(splits))}
    attributes = attribute_types([sample.attributes for sample in samples])
    for number, start in enumerate(range(0, len(samples), config.rows_per_fragment)):
        part = samples[start : start + config.rows_per_fragment]
        labels = {sample.label for sample in part}
        yield _Unit(
            number,
            source,
            part,
            {label: splits[label] for label in labels},
            {label: class_indices[label] for label in labels},
            attributes,
            config,
            staged,
        )


def _run(
    units: list[_Unit], config: IngestConfig, num_samples: int, progress: OnProgress | None
) -> list[_UnitResult]:
    small = num_samples <= _SMALL_SOURCE
    workers = config.num_workers or (1 if small else os.cpu_count() or 1)
    done: list[_UnitResult] = []
    for result in _run_here(units) if workers == 1 else _run_with_ray(units, workers):
        done.append(result)
        if progress is not None:
            progress(len(done), len(units))
    return sorted(done, key=lambda result: result.number)


def _run_here(units: list[_Unit]) -> Iterator[_UnitResult]:
    with ThreadPoolExecutor(1 if len(units) == 1 else os.cpu_count()) as pool:
        yield from pool.map(_work, units)


def _run_with_ray(units: list[_Unit], workers: int) -> Iterator[_UnitResult]:
    with ray_session(num_cpus=workers):
        import ray
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        # Units travel as references to one object each; a row is the number of a unit.
        shelf = [ray.put(unit) for unit in units]

        def work(row: dict[str, Any]) -> dict[str, Any]:
            result = _work(ray.get(shelf[row["item"]]))
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, result.rows.schema) as writer:
                writer.write_table(result.rows)
            problems = [list(problem) for problem in result.problems]
            return {"number": result.number, "rows": sink.getvalue().to_pybytes(), "problems": problems}

        numbers = ray.data.from_items(list(range(len(units))), override_num_blocks=len(units))
        for row in numbers.map(work).iter_rows():
            rows = pa.ipc.open_stream(row["rows"]).read_all()
            yield _UnitResult(row["number"], rows, [Problem(*problem) for problem in row["problems"]])


def _work(unit: _Unit) -> _UnitResult:
    """Read, check and write one unit; what cannot become a row is returned as a problem."""
    rows, problems = [], []
    for sample in unit.samples:
        try:
            content = unit.source.read(sample.locator)
            width, height = _check(content, unit.config)
        except _Refused as refused:
            problems.append(Problem(sample.id, sample.label, sample.locator, refused.reason, str(refused)))
        except (DmlError, OSError) as error:
            problems.append(Problem(sample.id, sample.label, sample.locator, "missing file", str(error)))
        else:
            rows.append(
                {
                    "id": sample.id,
                    "label": sample.label,
                    "class_index": unit.class_indices[sample.label],
                    "split": unit.splits[sample.label],
                    "width": width,
                    "height": height,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    **{
                        name: _as(kind, sample.attributes.get(name)) for name, kind in unit.attributes.items()
                    },
                    IMAGE: content,
                }
            )
    table = pa.Table.from_pylist(rows, schema=dataset_schema(unit.attributes))
    if rows:
        write_fragment(table, _fragment(unit.staged, unit.number), rows_per_group=unit.config.rows_per_group)
    return _UnitResult(unit.number, table.drop_columns([IMAGE]), problems)


def _as(kind: AttributeType, value: Any) -> Any:
    return float(value) if kind == "double" and value is not None else value


class _Refused(Exception):
    """An image that must not become a row, and why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _check(content: bytes, config: IngestConfig) -> tuple[int, int]:
    """Width and height of an image that decodes whole and is within the limits; the size is read first."""
    if not content:
        raise _Refused("empty file", "0 bytes")
    if len(content) > config.max_bytes:
        raise _Refused("oversized", f"{len(content)} bytes, more than max_bytes {config.max_bytes}")
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except Exception as error:  # Pillow's plugins raise whatever their formats' parsers meet
        raise _Refused("not an image", f"{type(error).__name__}: {error}") from error
    if width * height > config.max_pixels:
        raise _Refused("oversized", f"{width} x {height} pixels, more than max_pixels {config.max_pixels}")
    try:
        decode(content, "RGB")
    except Exception as error:
        raise _Refused("truncated or corrupt", str(error)) from error
    return width, height


def _fragment(folder: str, number: int) -> str:
    return storage.join(folder, f"part-{number:05d}.parquet")


def _contradictions(results: list[_UnitResult], staged: str, config: IngestConfig) -> list[Problem]:
    """The same bytes under two labels: one of them is wrong, and nobody can tell which.

    Published data sets have such rows (22 of CARS196's training images), and results are compared with them
    in, so they are only told of unless the configuration asks for their quarantine.
    """
    labels = defaultdict(set)
    for result in results:
        for digest, label in zip(*_columns(result.rows, "sha256", "label"), strict=True):
            labels[digest].add(label)
    contradicted = {digest for digest, found in labels.items() if len(found) > 1}
    if contradicted:
        told = "in quarantine" if config.quarantine_contradictions else "kept as they are"
        logger.warning("%d images stand under several labels each; %s", len(contradicted), told)
    if not (contradicted and config.quarantine_contradictions):
        return []
    problems = []
    for i, result in enumerate(results):
        keep = [digest not in contradicted for digest in result.rows["sha256"].to_pylist()]
        if all(keep):
            continue
        mask = pa.array(keep)
        for row in result.rows.filter(pa.compute.invert(mask)).to_pylist():
            detail = f"the same bytes have the labels {sorted(labels[row['sha256']])}"
            problems.append(Problem(row["id"], row["label"], row["id"], "contradictory label", detail))
        uri = _fragment(staged, result.number)
        whole = parquet.read_table(pa.BufferReader(storage.read_bytes(uri))).filter(mask)
        storage.delete(uri)
        if len(whole):
            write_fragment(whole, uri, rows_per_group=config.rows_per_group)
        results[i] = _UnitResult(result.number, result.rows.filter(mask), result.problems)
    return problems


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def _publish(
    results: list[_UnitResult],
    problems: list[Problem],
    attributes: dict[str, AttributeType],
    config: IngestConfig,
    folder: str,
    staged: str,
) -> DatasetRef:
    rows = pa.concat_tables([result.rows for result in results])
    if not len(rows):
        raise InvalidData(
            f"A dataset needs at least one valid image; all {len(problems)} of {config.source} were refused, "
            f"such as {problems[0].id}: {problems[0].reason} ({problems[0].detail})."
        )
    fingerprint = _fingerprint(rows, attributes)
    uri = storage.join(folder, fingerprint[:12])
    labels, splits = _columns(rows, "label", "split")
    ref = DatasetRef(
        uri=uri,
        fingerprint=fingerprint,
        name=config.name,
        rows=len(rows),
        classes=len(set(labels)),
        splits={
            split: SplitSize(
                rows=splits.count(split),
                classes=len({label for label, of in zip(labels, splits, strict=True) if of == split}),
            )
            for split in sorted(set(splits), reverse=True)
        },
        quarantined=len(problems),
        attributes=attributes,
        schema_version=SCHEMA_VERSION,
    )
    quarantine = pa.Table.from_pylist([p._asdict() for p in problems], schema=QUARANTINE_SCHEMA)
    write_fragment(quarantine, storage.join(staged, "quarantine.parquet"), rows_per_group=1 << 16)
    fragments = {_fragment("", result.number)[1:]: len(result.rows) for result in results if len(result.rows)}
    description = {
        "ref": ref.model_dump(mode="json", exclude={"uri"}),
        "fragments": fragments,
        "ingest": config.model_dump(mode="json"),
    }
    storage.publish(staged, uri, description)
    storage.point(folder, ref.version)
    return ref


def _fingerprint(rows: pa.Table, attributes: dict[str, AttributeType]) -> str:
    """Covers every row's id, bytes, label, split and attributes; neither their origin nor their order."""
    names = ["id", "sha256", "label", "split", *attributes]
    digest = hashlib.sha256(repr((SCHEMA_VERSION, sorted(attributes.items()))).encode())
    lines: Iterable[tuple[Any, ...]] = zip(*_columns(rows, *names), strict=True)
    for line in sorted(lines, key=lambda line: str(line[0])):
        digest.update(repr(line).encode())
    return digest.hexdigest()

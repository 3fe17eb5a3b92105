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
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from dml import storage
from dml.cluster import ray_session
from dml.config import IngestConfig
from dml.data.dataset import find_dataset
from dml.data.schema import (
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    attribute_types,
)
from dml.data.sources.access import Access
from dml.data.sources.detect import absolute, open_source
from dml.data.sources.sample import Listing, Problem, Sample, Source
from dml.data.split import split_of_classes
from dml.data.unit import Result, Row, Unit, make_fragment, problem_of, rewrite
from dml.errors import DmlError, InvalidData
from dml.refs import AttributeType, DatasetRef, SplitSize

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine.parquet"
# Ray takes some 12 s to start on 2 cores; two threads validate and write that many small images meanwhile.
_SMALL_SOURCE_ROWS = 25_000

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
    access = Access(config.allowed_prefixes, (storage.resolve(store),), config.timeout_s, config.retries)
    source = open_source(config.source, config.layout, access)
    listing = _list(source, config)
    samples, problems = _screen(listing.samples)
    problems += listing.problems
    if not samples:
        raise _nothing_valid(config, problems)
    split_of = split_of_classes(samples, config.split or listing.split)
    attributes = attribute_types([sample.attributes for sample in samples])

    storage.mark_store(store)
    parent = storage.named_folder(store, "datasets", config.name)
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
        fingerprint = _fingerprint(rows, attributes, problems)
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
                "ingest": {**config.model_dump(mode="json"), "source": absolute(config.source)},
            },
        )
    except BaseException:
        storage.delete(staged)
        raise
    storage.point(parent, ref.version)
    return find_dataset(store, f"{ref.name}@{ref.version}")


def ingest_config_of(ref: DatasetRef) -> IngestConfig:
    """How a dataset version was ingested, to do the same again."""
    return IngestConfig.model_validate(storage.read_manifest(ref.uri)["ingest"])


def _list(source: Source, config: IngestConfig) -> Listing:
    try:
        return source.list()
    except (DmlError, MemoryError):
        raise
    except Exception as error:  # what others made fails in ways that nobody foresaw
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
            problems.append(problem_of(sample, "missing label", "the label is blank"))
        elif len(labels_of[sample.id]) > 1:
            detail = f"this id also has the labels {sorted(labels_of[sample.id] - {sample.label})}"
            problems.append(problem_of(sample, "contradictory label", detail))
        elif sample.id in kept:
            problems.append(problem_of(sample, "duplicate id", f"as {kept[sample.id].locator}"))
        else:
            kept[sample.id] = sample
    return sorted(kept.values(), key=lambda sample: (sample.label, sample.id)), problems


def _nothing_valid(config: IngestConfig, problems: Sequence[Problem]) -> InvalidData:
    reasons = dict(Counter(problem.reason for problem in problems).most_common(5))
    examples = [f"{problem.locator}: {problem.detail}" for problem in problems[:3]]
    return InvalidData(
        f"A dataset needs valid images in each of its splits; {config.source} has none left in one of them. "
        f"In quarantine: {reasons}, such as {examples}."
    )


def _units(
    config: IngestConfig,
    source: Source,
    samples: Sequence[Sample],
    split_of: Mapping[str, str],
    attributes: Mapping[str, AttributeType],
    staged: str,
) -> list[Unit]:
    class_index = {label: index for index, label in enumerate(sorted(split_of))}
    units = []
    for number, start in enumerate(range(0, len(samples), config.rows_per_fragment)):
        own = [s._replace(split=split_of[s.label]) for s in samples[start : start + config.rows_per_fragment]]
        indices = [class_index[sample.label] for sample in own]
        units.append(Unit(number, source, own, indices, attributes, staged, config))
    return units


def _results(
    units: Sequence[Unit], num_workers: int | None, num_samples: int, progress: OnProgress | None
) -> list[Result]:
    here = num_workers == 1 or (num_workers is None and num_samples < _SMALL_SOURCE_ROWS)
    results = []
    for result in _by_threads(units) if here else _by_ray(units, num_workers):
        results.append(result)
        if progress is not None:
            progress(len(results), len(units))
    return sorted(results)


def _by_threads(units: Sequence[Unit]) -> Iterator[Result]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(make_fragment, units)


def _by_ray(units: Sequence[Unit], num_workers: int | None) -> Iterator[Result]:
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
    return {"result": pickle.dumps(make_fragment(pickle.loads(row["unit"])))}


@dataclass(frozen=True)
class _Fragment:
    name: str
    rows: Sequence[Row]


def _reconcile(units: Sequence[Unit], results: Sequence[Result]) -> tuple[list[_Fragment], list[Problem]]:
    """Settle what only the whole shows: one image under two labels, and classes that lost all their rows."""
    others = _contradictions(results)
    problems = []
    if others and not units[0].config.quarantine_contradictions:
        logger.warning("%d images stand under several labels each; they are kept as they are", len(others))
        others = {}
    for digest, row in ((row.sha256, row) for result in results for row in result.rows):
        if digest in others:
            detail = f"the same bytes have the labels {others[digest]}"
            problems.append(problem_of(row.sample, "contradictory label", detail))
    kept = [[row for row in result.rows if row.sha256 not in others] for result in results]
    class_index = {label: i for i, label in enumerate(sorted({row.label for rows in kept for row in rows}))}
    for unit, result, rows in zip(units, results, kept, strict=True):
        if rows != result.rows or any(row.class_index != class_index[row.label] for row in rows):
            rewrite(unit, rows, class_index)
    fragments = [_Fragment(unit.fragment, rows) for unit, rows in zip(units, kept, strict=True) if rows]
    return fragments, problems


def _contradictions(results: Sequence[Result]) -> dict[str, list[str]]:
    """The labels of each image (by digest) that has more than one: one is wrong, and nobody can tell which.

    Published data sets have them (22 rows of CARS196's training half), and results are compared with them in.
    """
    labels_of: dict[str, set[str]] = {}
    for result in results:
        for row in result.rows:
            labels_of.setdefault(row.sha256, set()).add(row.label)
    return {digest: sorted(labels) for digest, labels in labels_of.items() if len(labels) > 1}


def _write_quarantine(uri: str, problems: Sequence[Problem]) -> None:
    rows = [problem._asdict() for problem in sorted(problems)]
    filesystem, path = storage.filesystem(uri)
    parquet.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA), path, filesystem=filesystem)


def _split_sizes(rows: Sequence[Row]) -> dict[str, SplitSize]:
    num_rows = Counter(row.split for row in rows)
    num_classes = Counter(split for split, _ in {(row.split, row.label) for row in rows})
    return {name: SplitSize(rows=num_rows[name], classes=num_classes[name]) for name in sorted(num_rows)}


def _fingerprint(
    rows: Iterable[Row], attributes: Mapping[str, AttributeType], problems: Iterable[Problem]
) -> str:
    """SHA-256 of the rows and of what was refused: the same for any order, place and number of workers."""
    digest = hashlib.sha256(storage.digest_of(SCHEMA_VERSION, dict(attributes)).encode())
    for row in sorted(rows, key=lambda row: row.sample.id):
        values = [_value(row.sample.attributes.get(name), kind) for name, kind in attributes.items()]
        digest.update(storage.digest_of(row.sample.id, row.sha256, row.label, row.split, values).encode())
    digest.update(storage.digest_of(sorted([problem.id, problem.reason] for problem in problems)).encode())
    return digest.hexdigest()


def _value(value: Any, kind: AttributeType) -> Any:
    return float(value) if kind == "double" and value is not None else value

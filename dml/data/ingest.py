"""From a source to a published dataset: listed, split, validated, written aside in fragments, then published.

A fragment is read, decoded and written on its own, by a thread of this process or by Ray, with the same
result to the byte. What cannot become a row goes to the quarantine table and the rest goes on. A killed
ingest leaves nothing visible.
"""

import hashlib
import logging
import os
import pickle
import socket
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from dml import storage
from dml.cluster import quiet_ray_data, ray_session
from dml.config import IngestConfig, SplitConfig
from dml.data.dataset import find_dataset
from dml.data.forgotten import digest_of_id, forgotten_ids
from dml.data.former import (
    ChosenSplit,
    FormerVersion,
    LastIngest,
    choose_split,
    find_former,
    last_ingest,
    write_class_splits,
)
from dml.data.fragment import FragmentJob, FragmentResult, Row, cut, keep_rows, make_fragment, problem_of
from dml.data.quarantine import (
    QUARANTINE,
    in_words,
    latest_quarantine,
    refusals_of,
    require_few,
    write_quarantine,
)
from dml.data.reach import find_witness, require_missing_here_too, require_reach
from dml.data.schema import SCHEMA_VERSION, TEST, Fragment, attribute_types
from dml.data.sources.access import Access
from dml.data.sources.detect import absolute, open_source
from dml.data.sources.sample import Listing, Problem, Sample, Source, normalised
from dml.errors import CorruptArtifact, DmlError, IncompatibleArtifact, InvalidData
from dml.progress import Ticker
from dml.refs import AttributeType, DatasetRef, SplitSize
from dml.reports import IngestOutcome, IngestReport

logger = logging.getLogger(__name__)

# Ray takes some 12 s to start on 2 cores; two threads validate and write that many small images meanwhile.
_SMALL_SOURCE_ROWS = 25_000
_NAMED_AT_MOST = 3

OnProgress = Callable[[int, int], None]
"""Receives how many fragments are done, and how many there are."""


def ingest(config: IngestConfig, store: str, progress: OnProgress | None = None) -> DatasetRef:
    """The version that `ingest_source` reports of."""
    return ingest_source(config, store, progress).dataset


def ingest_again(ref: DatasetRef, store: str, progress: OnProgress | None = None) -> DatasetRef:
    """The version that a damaged one's source gives now; which version is current stays as it is."""
    is_current = storage.current(storage.named_folder(store, "datasets", ref.name)) == ref.version
    config = last_ingest(store, ref.name) if is_current else ingest_config_of(ref)
    return ingest_source(config, store, progress, make_current=False).dataset


def ingest_source(
    config: IngestConfig, store: str, progress: OnProgress | None = None, *, make_current: bool = True
) -> IngestReport:
    """Make a dataset version of a source and point the dataset's name at it.

    Args:
        config: the source and how to read it.
        store: the store's URI.
        progress: called after each fragment.
        make_current: False makes a version again that is damaged, and leaves the current one as it is.

    Returns:
        The version, and what there is to know of it. The same content gives the same version, and no second
        copy, wherever it came from and however many workers read it; one that was damaged is made again.

    Raises:
        InvalidData: no known layout, no valid row, a split that cannot be, or attributes of mixed types.
        TooManyRefused: more than `max_quarantined` of the rows; nothing is published.
        MissingArtifact: there is no such source, or a worker's machine does not see it or the store.
        InvalidSetting: the split or the source cannot be followed.
        IncompatibleArtifact: another ingest of the same name, published meanwhile, split a class otherwise;
            or items were forgotten meanwhile.
    """
    with Ticker("ingest") as ticker:
        return _ingest_source(config, store, ticker, progress, make_current)


def _ingest_source(
    config: IngestConfig, store: str, ticker: Ticker, progress: OnProgress | None, make_current: bool
) -> IngestReport:
    ticker.begin("listing", "entries")
    config = config.model_copy(update={"source": absolute(config.source)})
    listed = _list_samples(config, store, ticker)
    storage.mark_store(store)
    former = find_former(store, config.name)
    _require_valid(config, store, listed.problems, listed.num_rows, is_empty=not listed.samples)
    split = choose_split(listed.samples, config.split, listed.default_split, former)
    config = config.model_copy(update={"split": split.requested})
    parent = storage.named_folder(store, "datasets", config.name)
    with storage.staged(storage.join(parent, "ingest")) as staged:
        made = _make_fragments(config, listed, split.split_of_class, staged, ticker, progress)
        is_empty = not made.rows or {row.split for row in made.rows} != set(split.split_of_class.values())
        _require_valid(config, store, made.problems, listed.num_rows, is_empty=is_empty)
        with storage.locked_pointer(parent) as pointer:
            split = _as_others_assigned(split, former, find_former(store, config.name), config.name)
            write_quarantine(storage.join(staged, QUARANTINE), made.problems)
            write_class_splits(staged, split.remembered)
            ref = _ref_of(made, config.name, parent)
            this = LastIngest(config, split.config).to_json()
            ticker.begin("publishing", "files")
            outcome = _publish(staged, ref, made, this, is_current=pointer.version == ref.version)
            _refuse_forgotten(store, ref, made.ids, outcome)
            if make_current or pointer.version is None:
                pointer.move(ref.version, remember=this)
    return IngestReport(
        dataset=find_dataset(store, str(ref)),
        outcome=outcome,
        refused=refusals_of(made.problems),
        quarantine=latest_quarantine(store, config.name),
        notes=_notes(config, ref, listed, split, former, made),
    )


@dataclass(frozen=True)
class _Listed:
    """A source's samples, screened, and what is wrong with the rest."""

    source: Source
    samples: list[Sample]
    problems: list[Problem]
    default_split: SplitConfig
    notes: list[str]

    @property
    def num_rows(self) -> int:
        return len(self.samples) + len(self.problems)


def _list_samples(config: IngestConfig, store: str, ticker: Ticker) -> _Listed:
    access = Access(config.allowed_prefixes, (storage.resolve(store),), config.timeout_s, config.retries)
    source = open_source(config.source, config.layout, access)
    listing, notes = _without_forgotten(_list(source, config), forgotten_ids(store, config.name))
    ticker.begin(f"sorting {len(listing.samples)} samples")
    samples, problems, merged = _screen(listing.samples)
    return _Listed(source, samples, problems + listing.problems, listing.split, notes + merged)


@dataclass(frozen=True)
class _Made:
    """A version's fragments, with their rows, before it is published."""

    fragments: list[Fragment]
    rows: list[Row]
    attributes: dict[str, AttributeType]
    problems: list[Problem]
    contradictions: list[list[Row]]

    @property
    def ids(self) -> list[str]:
        """Of all that it names."""
        return [*(row.sample.id for row in self.rows), *(problem.id for problem in self.problems)]


def _make_fragments(
    config: IngestConfig,
    listed: _Listed,
    split_of_class: Mapping[str, str],
    staged: str,
    ticker: Ticker,
    progress: OnProgress | None,
) -> _Made:
    attributes = attribute_types([sample.attributes for sample in listed.samples])
    jobs = _jobs(config, listed, split_of_class, attributes, staged)
    results = _results(jobs, config.num_workers, len(listed.samples), ticker, progress)
    ticker.begin("comparing images and labels")
    fragments, rows, contradictions = _reconcile(jobs, results)
    problems = listed.problems + [problem for result in results for problem in result.problems]
    if config.quarantine_contradictions:
        problems += _contradictory(contradictions)
    return _Made(fragments, rows, attributes, problems, contradictions)


def _ref_of(made: _Made, name: str, parent: str) -> DatasetRef:
    fingerprint = fingerprint_of(made.rows, made.attributes, made.problems)
    return DatasetRef(
        uri=storage.join(parent, fingerprint[:12]),
        fingerprint=fingerprint,
        name=name,
        rows=len(made.rows),
        classes=len({row.label for row in made.rows}),
        splits=split_sizes(made.rows),
        quarantined=len(made.problems),
        attributes=made.attributes,
        schema_version=SCHEMA_VERSION,
    )


def _notes(
    config: IngestConfig,
    ref: DatasetRef,
    listed: _Listed,
    split: ChosenSplit,
    former: FormerVersion,
    made: _Made,
) -> list[str]:
    """What the reader must know of how the version came about."""
    return [
        _held_out(ref, str(split.config)),
        *split.notes,
        *_fewer(ref, former, split.split_of_class),
        *listed.notes,
        *_contradictions_note(made.contradictions, config.quarantine_contradictions),
        *_repeated(made.rows),
        *_lost(split.split_of_class, made.rows),
    ]


def _require_valid(
    config: IngestConfig, store: str, problems: Sequence[Problem], num_listed: int, *, is_empty: bool
) -> None:
    """Keep the table of problems where a failed ingest leaves it too; fail with too many, or nothing left."""
    table = latest_quarantine(store, config.name)
    write_quarantine(table, problems)
    require_few(problems, num_listed, config.max_quarantined, source=config.source, table=table)
    if is_empty:
        raise _nothing_valid(config, problems, table)


def _publish(
    staged: str, ref: DatasetRef, made: _Made, this: Mapping[str, Any], *, is_current: bool
) -> IngestOutcome:
    """Make the version visible; one that is there already is checked, and made again where it is damaged."""
    outcome: IngestOutcome = "made"
    if storage.is_complete(ref.uri):
        try:
            storage.verify(ref.uri)
            outcome = "current" if is_current else "found"
        except CorruptArtifact as error:
            logger.warning("made again, since it was damaged: %s", error)
            storage.delete(ref.uri)
            outcome = "repaired"
    description = {
        "ref": ref.model_dump(mode="json", exclude={"uri"}),
        "fragments": [fragment._asdict() for fragment in made.fragments],
        **this,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    storage.publish(staged, ref.uri, description)
    return outcome


def _as_others_assigned(
    split: ChosenSplit, former: FormerVersion, latest: FormerVersion, name: str
) -> ChosenSplit:
    """The split, also of the classes that another ingest of the same name published while this one read."""
    if not split.reassigns and latest.requested_split != former.requested_split:
        raise IncompatibleArtifact(
            f"One ingest of a dataset must end before the next begins; {name}@{latest.version} was meanwhile "
            f"split by {latest.requested_split}. Nothing was published; begin again."
        )
    if latest.version == former.version:
        return split
    known = {} if split.reassigns else latest.split_of_class
    apart = sorted(label for label, side in split.split_of_class.items() if known.get(label, side) != side)
    if apart:
        raise IncompatibleArtifact(
            f"One ingest of a dataset must end before the next begins; {name}@{latest.version} was published "
            f"meanwhile, where {len(apart)} of these classes are on the other side, such as "
            f"{apart[:_NAMED_AT_MOST]}. Nothing was published; begin again."
        )
    return replace(split, remembered={**known, **split.remembered})


def _refuse_forgotten(store: str, ref: DatasetRef, ids: Sequence[str], outcome: IngestOutcome) -> None:
    """Take back a version with items that were forgotten while it was made: `forget` saw it, or this does."""
    forgotten = forgotten_ids(store, ref.name)
    back = sum(digest_of_id(id_) in forgotten for id_ in ids) if forgotten else 0
    if back:
        if outcome == "made":
            storage.remove(ref.uri)
        raise IncompatibleArtifact(
            f"An ingest must not bring back what is forgotten; {back} items of {ref.name} were forgotten "
            "meanwhile. Nothing was published; begin again."
        )


def _fewer(ref: DatasetRef, former: FormerVersion, labels: Iterable[str]) -> list[str]:
    """What to say where a source has lost much since it was ingested last, or is another one."""
    if former.version is not None and former.split_of_class.keys().isdisjoint(labels):
        return [
            f"none of these classes is in {ref.name}@{former.version}, which this version replaces; another "
            "source needs another --name"
        ]
    if ref.rows >= former.rows and ref.classes >= former.classes:
        return []
    return [
        f"fewer than in {ref.name}@{former.version}: {ref.rows} of {former.rows} images, {ref.classes} of "
        f"{former.classes} classes"
    ]


def _held_out(ref: DatasetRef, split: str) -> str:
    test = ref.splits.get(TEST)
    if test is None:
        return f"nothing is held out (split {split}): judge on another, dml train {ref.name} --test OTHER"
    return (
        f"held out for test: {test.classes} of {ref.classes} classes ({test.classes / ref.classes:.0%}), "
        f"{test.rows} of {ref.rows} images ({test.rows / ref.rows:.0%}), by split {split}"
    )


def _contradictions_note(contradictions: Sequence[Sequence[Row]], refused: bool) -> list[str]:
    """What to say of the images that stand under several labels."""
    if not contradictions:
        return []
    apart = [len({row.split for row in rows}) > 1 for rows in contradictions]
    ordered = sorted(range(len(apart)), key=lambda number: not apart[number])
    examples = [
        " and ".join(f"{row.sample.id} ({row.label}, {row.split})" for row in contradictions[number])
        for number in ordered[:_NAMED_AT_MOST]
    ]
    done = "in quarantine" if refused else "kept; --set quarantine_contradictions=true leaves them out"
    return [
        f"{len(contradictions)} images stand under several labels, {sum(apart)} of them in train and in test "
        f"({done}): {'; '.join(examples)}"
    ]


def _repeated(rows: Sequence[Row]) -> list[str]:
    """What to say of images that stand under one label more than once."""
    of_image: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        of_image.setdefault((row.label, row.sha256), []).append(row)
    twins = [same for same in of_image.values() if len(same) > 1]
    if not twins:
        return []
    examples = [" and ".join(row.sample.id for row in same[:_NAMED_AT_MOST]) for same in twins]
    in_test = sum(same[0].split == TEST for same in twins)
    return [
        f"{len(twins)} images stand more than once under their label, {in_test} of them in test, where one "
        f"is found by the other: {'; '.join(examples[:_NAMED_AT_MOST])}"
    ]


def _lost(split_of_class: Mapping[str, str], rows: Iterable[Row]) -> list[str]:
    lost = sorted(set(split_of_class) - {row.label for row in rows})
    return (
        [f"{len(lost)} classes have lost all their images, such as {lost[:_NAMED_AT_MOST]}"] if lost else []
    )


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


def _without_forgotten(listing: Listing, forgotten: frozenset[str]) -> tuple[Listing, list[str]]:
    """What a source lists, less the items that must not come back; and what to say of them."""
    if not forgotten:
        return listing, []

    def stays(each: Sample | Problem) -> bool:
        return digest_of_id(each.id) not in forgotten

    kept = replace(
        listing,
        samples=[sample for sample in listing.samples if stays(sample)],
        problems=[problem for problem in listing.problems if stays(problem)],
    )
    left_out = len(listing.samples) - len(kept.samples)
    return kept, [f"{left_out} forgotten items are left out"] if left_out else []


def _screen(samples: Sequence[Sample]) -> tuple[list[Sample], list[Problem], list[str]]:
    """Samples with a label and an id of their own, by class and id, so that a class lies together.

    Labels are taken without space around them and in Unicode's form NFC: those that look alike are one class.

    Returns:
        The samples, what is wrong with the others, and what to say of labels that became one.
    """
    raw_of: dict[str, set[str]] = {}
    for sample in samples:
        raw_of.setdefault(normalised(sample.label), set()).add(sample.label)
    samples = [sample._replace(label=normalised(sample.label)) for sample in samples]
    labels_of: dict[str, set[str]] = {}
    for sample in samples:
        labels_of.setdefault(sample.id, set()).add(sample.label)
    kept: dict[str, Sample] = {}
    problems = []
    for sample in samples:
        if not sample.label:
            problems.append(problem_of(sample, "missing label", "the label is blank"))
        elif len(labels_of[sample.id]) > 1:
            detail = f"this id also has the labels {sorted(labels_of[sample.id] - {sample.label})}"
            problems.append(problem_of(sample, "contradictory label", detail))
        elif sample.id in kept:
            problems.append(problem_of(sample, "duplicate id", f"as {kept[sample.id].locator}"))
        else:
            kept[sample.id] = sample
    ordered = sorted(kept.values(), key=lambda sample: (sample.label, sample.id))
    return ordered, problems, _merged({label: raw for label, raw in raw_of.items() if label})


def _merged(raw_of: Mapping[str, set[str]]) -> list[str]:
    merged = {label: sorted(raw) for label, raw in sorted(raw_of.items()) if len(raw) > 1}
    if not merged:
        return []
    examples = [f"{label!r} from {', '.join(map(ascii, raw))}" for label, raw in merged.items()]
    return [
        f"{sum(map(len, merged.values()))} labels became {len(merged)}, since they differ only in outer "
        f"space or in Unicode's form: {'; '.join(examples[:_NAMED_AT_MOST])}"
    ]


def _nothing_valid(config: IngestConfig, problems: Sequence[Problem], table: str) -> InvalidData:
    if not problems:
        return InvalidData(
            f"A source must list images; {config.source} lists none. Check what it should hold."
        )
    return InvalidData(
        f"A dataset needs valid images in each of its splits; {config.source} has none left in one of them. "
        f"In quarantine: {in_words(problems)}. All of it is listed in {table}."
    )


def _jobs(
    config: IngestConfig,
    listed: _Listed,
    split_of_class: Mapping[str, str],
    attributes: Mapping[str, AttributeType],
    staged: str,
) -> list[FragmentJob]:
    samples = [sample._replace(split=split_of_class[sample.label]) for sample in listed.samples]
    return [
        FragmentJob(number, listed.source, part, attributes, staged, config)
        for number, part in enumerate(cut(samples, config.rows_per_fragment))
    ]


def _results(
    jobs: Sequence[FragmentJob],
    num_workers: int | None,
    num_samples: int,
    ticker: Ticker,
    progress: OnProgress | None,
) -> list[FragmentResult]:
    here = num_workers == 1 or (num_workers is None and num_samples < _SMALL_SOURCE_ROWS)
    results = []
    with closing(_by_threads(jobs, ticker) if here else _by_ray(jobs, num_workers, ticker)) as made:
        for result in made:
            results.append(result)
            if progress is not None:
                progress(len(results), len(jobs))
    return sorted(results)


class _Stopped(Exception):
    """What ends a thread of an ingest that was interrupted, or has failed."""


def _by_threads(jobs: Sequence[FragmentJob], ticker: Ticker) -> Generator[FragmentResult]:
    stopping = threading.Event()

    def on_sample() -> None:
        if stopping.is_set():
            raise _Stopped
        ticker.count()

    ticker.begin("reading", "images", sum(len(job.samples) for job in jobs))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(make_fragment, job, on_sample) for job in jobs]
        try:
            for future in futures:
                yield future.result()
        finally:
            stopping.set()
            for future in futures:
                future.cancel()


def _by_ray(
    jobs: Sequence[FragmentJob], num_workers: int | None, ticker: Ticker
) -> Generator[FragmentResult]:
    ticker.begin("starting Ray")
    source = jobs[0].source
    witness = find_witness(source, jobs[0].samples)
    with ray_session(num_workers):
        import ray.data

        quiet_ray_data()
        # Pickled, since Arrow would make tables of what is ours; one block a job, so that each is a task.
        items = [{"job": pickle.dumps((job, witness))} for job in jobs]
        done = ray.data.from_items(items, override_num_blocks=len(items)).map(_make_pickled)
        ticker.begin("reading with Ray", "images", sum(len(job.samples) for job in jobs))
        with closing(iter(done.iter_rows())) as rows:  # else Ray Data's threads outlive the session
            for row in rows:
                result = pickle.loads(row["result"])
                if isinstance(result, DmlError):
                    raise result
                require_missing_here_too(source, result.problems, uri=jobs[0].config.source, node=row["node"])
                ticker.count(len(jobs[result.number].samples))
                yield result


def _make_pickled(row: dict[str, bytes]) -> dict[str, Any]:
    """A job's result; what a user can put right comes back as it is, for Ray would wrap it and try again."""
    job, witness = pickle.loads(row["job"])
    node = _node()
    try:
        require_reach(job.source, witness, job.staged, uri=job.config.source, node=node)
        result = pickle.dumps(make_fragment(job))
    except DmlError as error:
        result = pickle.dumps(error)
    return {"result": result, "node": node}


def _node() -> str:
    import ray

    return f"node {ray.util.get_node_ip_address()} ({socket.gethostname()})"


def _reconcile(
    jobs: Sequence[FragmentJob], results: Sequence[FragmentResult]
) -> tuple[list[Fragment], list[Row], list[list[Row]]]:
    """A version's fragments and rows, and its images under several labels, refused where that is asked."""
    contradictions = _contradictions(results)
    refused: set[str] = set()
    if jobs[0].config.quarantine_contradictions:
        refused = {row.sha256 for rows in contradictions for row in rows}
    fragments, kept = [], []
    for job, result in zip(jobs, results, strict=True):
        rows = [row for row in result.rows if row.sha256 not in refused]
        fragment = result.fragment
        if fragment is not None and len(rows) < fragment.rows:
            fragment = keep_rows(job, fragment, rows)
        if fragment is not None:
            fragments.append(fragment)
        kept += rows
    return fragments, kept, contradictions


def _contradictions(results: Sequence[FragmentResult]) -> list[list[Row]]:
    """The rows of each image that has several labels: one is wrong, and nobody can tell which.

    Published data sets have them (22 rows of CARS196's training half), and results are compared with them in.
    """
    rows_of: dict[str, list[Row]] = {}
    for result in results:
        for row in result.rows:
            rows_of.setdefault(row.sha256, []).append(row)
    return [rows for rows in rows_of.values() if len({row.label for row in rows}) > 1]


def _contradictory(contradictions: Sequence[Sequence[Row]]) -> list[Problem]:
    return [
        problem_of(
            row.sample,
            "contradictory label",
            f"the same bytes have the labels {sorted({other.label for other in rows})}",
        )
        for rows in contradictions
        for row in rows
    ]


def split_sizes(rows: Sequence[Row]) -> dict[str, SplitSize]:
    num_rows = Counter(row.split for row in rows)
    num_classes = Counter(split for split, _ in {(row.split, row.label) for row in rows})
    return {name: SplitSize(rows=num_rows[name], classes=num_classes[name]) for name in sorted(num_rows)}


def fingerprint_of(
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

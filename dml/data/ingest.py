"""Ingest: a source in, a published dataset version out. It lists, splits, validates, writes and publishes.

Only what is new or has changed since the former version is read, and comes in new fragments (`delta`). Each
fragment is read, decoded and written independently, by a thread of this process or by Ray, with the same
bytes as result. Samples that cannot become rows go to the quarantine table. A killed ingest leaves no visible
files.
"""

import hashlib
import logging
import os
import pickle
import socket
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from dml import storage
from dml.cluster import quiet_ray_data, ray_session
from dml.config import IngestConfig, OfficialSplit, SplitConfig
from dml.data.continuity import require_listed, require_same_ids, require_same_rows
from dml.data.corrected import Corrections, read_corrections
from dml.data.dataset import find_dataset
from dml.data.delta import FormerRows, Plan, make_plan, read_former_rows, write_ids
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
from dml.data.fragment import FragmentJob, FragmentResult, Row, keep_rows, make_fragment, make_problem
from dml.data.known_files import CurrentFile, KnownFile, current_files, read_known_files, write_known_files
from dml.data.quarantine import (
    QUARANTINE,
    count_refusals,
    latest_quarantine,
    require_few,
    summarize_problems,
    write_quarantine,
)
from dml.data.reach import find_witness, require_missing_locally, require_reach
from dml.data.schema import SCHEMA_VERSION, TEST, Fragment, attribute_types
from dml.data.sources.access import Access
from dml.data.sources.detect import absolute, open_source
from dml.data.sources.sample import Listing, Problem, Sample, Source, normalized
from dml.errors import CorruptArtifact, DmlError, IncompatibleArtifact, InvalidData, InvalidSetting
from dml.names import versioned
from dml.progress import Ticker
from dml.refs import AttributeType, DatasetRef, SplitSize
from dml.reports import DatasetChanges, IngestOutcome, IngestReport

logger = logging.getLogger(__name__)

# Ray takes about 12 s to start on 2 cores; two threads process this many small images in that time.
_SMALL_SOURCE_ROWS = 25_000
_MAX_NAMED = 3

OnProgress = Callable[[int, int], None]
"""Called with (fragments done, total fragments)."""


def ingest(config: IngestConfig, store: str, progress: OnProgress | None = None) -> DatasetRef:
    """The dataset of `ingest_source`."""
    return ingest_source(config, store, progress).dataset


def ingest_again(ref: DatasetRef, store: str, progress: OnProgress | None = None) -> DatasetRef:
    """Make a damaged version again from its source, its rows in the same order; does not change which version
    is current."""
    is_current = storage.current(storage.named_folder(store, "datasets", ref.name)) == ref.version
    config = last_ingest(store, ref.name) if is_current else ingest_config_of(ref)
    with Ticker("ingest") as ticker:
        return _ingest_source(config, store, ticker, progress, damaged=ref).dataset


def ingest_unreadable(store: str, name: str, version: str, progress: OnProgress | None = None) -> DatasetRef:
    """Make a version whose manifest is damaged again, by repeating the latest ingest of its dataset.

    Args:
        store: the store's URI.
        name: the dataset's.
        version: which one.
        progress: called after each fragment.

    Returns:
        What the source gives now, the current version from then on: another one if the source has changed.

    Raises:
        CorruptArtifact: it is not the current version, so nothing says what it was made from.
        DmlError: as `ingest_source`.
    """
    if storage.current(storage.named_folder(store, "datasets", name)) != version:
        raise CorruptArtifact(
            "a manifest must record what a former version was made from, and it is damaged. Remove the "
            f"version: dml rm dataset {versioned(name, version)}."
        )
    return ingest_source(last_ingest(store, name), store, progress).dataset


def ingest_source(
    config: IngestConfig, store: str, progress: OnProgress | None = None, *, reread: bool = False
) -> IngestReport:
    """Make a dataset version from a source, and make it the current version.

    Only files that are new or have changed since the former version are read; its fragments are shared.

    Args:
        config: the source and how to read it.
        store: the store's URI.
        progress: called after each fragment.
        reread: read every file, also those that have not changed by size, times or ETag.

    Returns:
        The version and a report. Equal content gives the same version, without a second copy, independent of
        the source's location, the number of workers, and what was ingested before. A damaged version is made
        again.

    Raises:
        InvalidData: unknown layout, no valid row, an impossible split, or attributes of mixed types.
        TooManyRefused: more than `max_quarantined` of the rows were refused; nothing is published.
        MissingArtifact: there is no such source, or a worker's machine cannot read it or the store.
        InvalidSetting: the split or the source is invalid.
        IncompatibleArtifact: another ingest of the same name was published meanwhile with a different split
            of a class, or items were forgotten or corrected meanwhile.
    """
    with Ticker("ingest") as ticker:
        return _ingest_source(config, store, ticker, progress, reread=reread)


def _ingest_source(
    config: IngestConfig,
    store: str,
    ticker: Ticker,
    progress: OnProgress | None,
    *,
    reread: bool = False,
    damaged: DatasetRef | None = None,
) -> IngestReport:
    if storage.list_versions(storage.named_folder(store, "vectors", config.name)):
        raise InvalidSetting(
            f"A dataset must have a name of its own; {config.name!r} is that of imported vectors. Give "
            "another: --name."
        )
    ticker.begin("listing", "entries")
    config = config.model_copy(update={"source": absolute(config.source)})
    listed = _list_samples(config, store, ticker)
    storage.mark_store(store)
    former = find_former(store, config.name)
    _require_valid(config, store, listed.problems, listed.num_rows, is_empty=not listed.samples)
    if isinstance(former.split, OfficialSplit):
        kept = listed.corrections.keep_splits(listed.samples, former.split_of_class)
        listed = replace(listed, samples=kept)
    split = choose_split(listed.samples, config.split, listed.default_split, former)
    config = config.model_copy(update={"split": split.requested})
    parent = storage.named_folder(store, "datasets", config.name)
    with storage.staged(storage.join(parent, "ingest")) as staged:
        ticker.begin("comparing with the former version")
        plan, files = _plan(config, store, listed, split.split_of_class, former, staged, reread, damaged)
        _require_continuity(listed, plan.former)
        written = _write_fragments(config, plan, listed, ticker, progress)
        if listed.ids_are_rows and listed.marked:
            require_same_rows(written.changes.changed, config.source, listed.marked)
        splits = {row.split for row in written.rows}
        is_empty = not written.rows or splits != set(split.split_of_class.values())
        _require_valid(config, store, written.problems, listed.num_rows, is_empty=is_empty)
        with storage.locked_pointer(parent) as pointer:
            split = _merge_concurrent_ingest(split, former, find_former(store, config.name), config.name)
            _refuse_other_corrections(store, config.name, listed.corrections)
            ref = make_ref(parent, config.name, written)
            this_ingest = LastIngest(config, split.config).to_json()
            ticker.begin("publishing", "files")
            is_current = pointer.version == ref.version
            outcome = publish_version(
                staged,
                ref,
                written,
                split.remembered,
                this_ingest,
                is_current=is_current,
                thorough=bool(damaged),
            )
            refuse_forgotten(store, ref, written, outcome)
            if not damaged or pointer.version is None:
                pointer.move(ref.version, remember=this_ingest)
            _remember_files(store, config, files, written.rows)
    return IngestReport(
        dataset=find_dataset(store, str(ref)),
        outcome=outcome,
        changes=written.changes,
        refused=count_refusals(written.problems),
        quarantine=latest_quarantine(store, config.name),
        notes=_notes(config, ref, listed, split, former, written),
    )


@dataclass(frozen=True)
class _Listed:
    """A source's valid samples, and the problems of the others."""

    source: Source
    samples: list[Sample]
    problems: list[Problem]
    default_split: SplitConfig
    corrections: Corrections
    """Those that were applied."""
    notes: list[str]
    ids_are_rows: bool
    marked: str
    """Which items of the dataset must be known by their ids: corrected and forgotten ones; empty if none."""

    @property
    def num_rows(self) -> int:
        return len(self.samples) + len(self.problems)


def _list_samples(config: IngestConfig, store: str, ticker: Ticker) -> _Listed:
    access = Access(config.allowed_prefixes, (storage.resolve(store),), config.timeout_s, config.retries)
    source = open_source(config.source, config.layout, access)
    forgotten = forgotten_ids(store, config.name)
    listing, notes = _without_forgotten(_list(source, config), forgotten)
    ticker.begin(f"sorting {len(listing.samples)} samples")
    corrections = read_corrections(store, config.name)
    remaining, corrected = corrections.apply(listing.samples)
    samples, problems, merged = _screen(remaining)
    notes += [*corrected, *merged]
    marked = [f"{len(forgotten)} forgotten items"] * bool(forgotten)
    marked += [f"{len(corrections.by_id)} corrected items"] * bool(corrections.by_id)
    return _Listed(
        source,
        samples,
        problems + listing.problems,
        listing.split,
        corrections,
        notes,
        listing.ids_are_rows,
        " and ".join(marked),
    )


def _require_continuity(listed: _Listed, former: FormerRows) -> None:
    """Refuse a source whose images only seem to be removed, or to be others than the former version's."""
    ids = {sample.id for sample in listed.samples} | {problem.id for problem in listed.problems}
    require_listed(former.ids, ids, listed.problems)
    if listed.marked:
        require_same_ids(former.ids, ids, listed.marked)


@dataclass(frozen=True)
class VersionRows:
    """The fragments of a version and their rows, before it is published."""

    fragments: list[Fragment]
    rows: list[Row]
    """In the order of their positions."""
    attributes: dict[str, AttributeType]
    problems: list[Problem]
    shared: dict[str, Any]
    """The entries of the files that the former version has too."""
    contradictions: list[list[Row]]
    changes: DatasetChanges

    @property
    def ids(self) -> list[str]:
        """The ids of all rows and problems."""
        return [*(row.sample.id for row in self.rows), *(problem.id for problem in self.problems)]


def _plan(
    config: IngestConfig,
    store: str,
    listed: _Listed,
    split_of_class: Mapping[str, str],
    former: FormerVersion,
    staged: str,
    reread: bool,
    damaged: DatasetRef | None,
) -> tuple[Plan, dict[str, CurrentFile]]:
    """The plan of a version, and the source's files by id."""
    base = damaged or former.ref
    former_rows = FormerRows() if base is None else read_former_rows(base, thorough=damaged is not None)
    samples = [sample._replace(split=split_of_class[sample.label]) for sample in listed.samples]
    files = current_files(listed.source, samples)
    known = {} if reread else read_known_files(store, config)
    folder = storage.make_folder(storage.join(staged, storage.SHARED))
    attributes = attribute_types([sample.attributes for sample in listed.samples])
    plan = make_plan(listed.source, samples, files, attributes, former_rows, known, folder, config)
    return plan, {sample.id: file for sample, file in zip(samples, files, strict=True)}


def _write_fragments(
    config: IngestConfig, plan: Plan, listed: _Listed, ticker: Ticker, progress: OnProgress | None
) -> VersionRows:
    """Read and write what the plan says."""
    attributes = attribute_types([sample.attributes for sample in listed.samples])
    results = _results(plan.jobs, config.num_workers, ticker, progress)
    ticker.begin("comparing images and labels")
    return finish_version(config, plan, results, attributes, listed.problems)


def finish_version(
    config: IngestConfig,
    plan: Plan,
    results: Sequence[FragmentResult],
    attributes: dict[str, AttributeType],
    problems: Sequence[Problem],
) -> VersionRows:
    """The fragments of a version from those that stay and the results of the plan's jobs.

    Args:
        config: whether images with several labels are refused.
        plan: which fragments there are.
        results: of the plan's jobs.
        attributes: the columns' types.
        problems: the samples that were not read.
    """
    rows = _rows_of(plan, results)
    all_problems = [*problems, *(problem for result in results for problem in result.problems)]
    contradictions = _contradictions(rows.values())
    refused: set[str] = set()
    if config.quarantine_contradictions:
        all_problems += _contradiction_problems(contradictions)
        refused = {row.sha256 for same in contradictions for row in same}
    fragments, in_order = _assemble(plan, results, rows, refused)
    names = {fragment.name for fragment in fragments}
    shared = {name: entry for name, entry in plan.former.shared.items() if name in names}
    changes = _changes(plan.former, in_order, results)
    return VersionRows(fragments, in_order, attributes, all_problems, shared, contradictions, changes)


def _rows_of(plan: Plan, results: Sequence[FragmentResult]) -> dict[str, Row]:
    """All rows of a version by id, also those that stay."""
    sha256 = plan.former.columns.get("sha256", ())
    rows = [Row(sample, sha256[position]) for position, sample in plan.kept.items()]
    rows += [row for result in results for row in [*result.rows, *result.unchanged]]
    return {row.sample.id: row for row in rows}


def _assemble(
    plan: Plan, results: Sequence[FragmentResult], row_of: Mapping[str, Row], refused: Collection[str]
) -> tuple[list[Fragment], list[Row]]:
    """The fragments of a version and their rows, without those whose image is refused."""
    former = plan.former
    result_of = {result.number: result for result in results}
    staying = {former.ids[position] for position in plan.kept}
    staying |= {row.sample.id for result in results for row in result.unchanged}
    kept = {
        position: row_of[id_]
        for position, id_ in enumerate(former.ids)
        if id_ in staying and row_of[id_].sha256 not in refused
    }
    fragments: list[Fragment] = []
    rows: list[Row] = []
    for number, part in enumerate(plan.parts):
        if isinstance(part, int):
            fragment = plan.stored(part, kept)
            positions = range(former.starts[part], former.starts[part + 1])
            in_fragment = [kept[position] for position in positions if position in kept]
        else:
            fragment = result_of[number].fragment
            in_fragment = [row for row in result_of[number].rows if row.sha256 not in refused]
            if fragment is not None and len(in_fragment) < fragment.rows:
                fragment = keep_rows(part, fragment, in_fragment)
        if fragment is not None:
            fragments.append(fragment)
            rows += in_fragment
    return fragments, rows


def _changes(former: FormerRows, rows: Sequence[Row], results: Sequence[FragmentResult]) -> DatasetChanges:
    """How the rows differ from the former version's, and what was read for it."""
    counts: Counter[str] = Counter()
    for row in rows:
        position = former.position_of.get(row.sample.id)
        if position is None:
            counts["added"] += 1
        elif not former.is_readable(position):
            counts["unchanged"] += 1
        elif former.columns["sha256"][position] != row.sha256:
            counts["changed"] += 1
        else:
            counts["unchanged" if former.equals(position, row.sample) else "relabelled"] += 1
    ids = {row.sample.id for row in rows}
    return DatasetChanges(
        files_read=sum(result.files_read for result in results),
        bytes_read=sum(result.bytes_read for result in results),
        removed=sum(id_ not in ids for id_ in former.ids),
        **counts,
    )


def _remember_files(
    store: str, config: IngestConfig, files: Mapping[str, CurrentFile], rows: Sequence[Row]
) -> None:
    """Store which file each row was read from; a file that has just changed is read again the next time."""
    current = ((row, files[row.sample.id]) for row in rows)
    write_known_files(
        store,
        config,
        {
            row.sample.id: KnownFile(file.stamp, row.sha256)
            for row, file in current
            if file.stamp is not None and file.is_settled
        },
    )


def make_ref(parent: str, name: str, written: VersionRows) -> DatasetRef:
    """The ref of a version that is being made."""
    fingerprint = fingerprint_of(written.rows, written.attributes, written.problems)
    return DatasetRef(
        uri=storage.join(parent, fingerprint[:12]),
        fingerprint=fingerprint,
        name=name,
        rows=len(written.rows),
        classes=len({row.label for row in written.rows}),
        splits=split_sizes(written.rows),
        quarantined=len(written.problems),
        attributes=written.attributes,
        schema_version=SCHEMA_VERSION,
        order=order_of(row.sample.id for row in written.rows),
    )


def order_of(ids: Iterable[str]) -> str:
    """The digest of ids in their order."""
    digest = hashlib.sha256()
    for id_ in ids:
        encoded = id_.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def _notes(
    config: IngestConfig,
    ref: DatasetRef,
    listed: _Listed,
    split: ChosenSplit,
    former: FormerVersion,
    written: VersionRows,
) -> list[str]:
    """Notes for the user about how the version was made."""
    return [
        _split_note(ref, str(split.config)),
        *former.notes,
        *split.notes,
        *_shrinkage_note(ref, former, split.split_of_class),
        *listed.notes,
        *_contradictions_note(written.contradictions, config.quarantine_contradictions),
        *_duplicates_note(written.rows),
        *_lost_classes_note(split.split_of_class, written.rows),
    ]


def _require_valid(
    config: IngestConfig, store: str, problems: Sequence[Problem], num_listed: int, *, is_empty: bool
) -> None:
    """Write the quarantine table, also for a failed ingest; fail if too many rows or all rows are refused."""
    table = latest_quarantine(store, config.name)
    write_quarantine(table, problems)
    require_few(problems, num_listed, config.max_quarantined, source=config.source, table=table)
    if is_empty:
        raise _nothing_valid(config, problems, table)


def publish_version(
    staged: str,
    ref: DatasetRef,
    written: VersionRows,
    class_splits: Mapping[str, str],
    this_ingest: Mapping[str, Any],
    *,
    is_current: bool,
    thorough: bool = False,
) -> IngestOutcome:
    """Publish the version; an existing version is verified, and replaced if it is damaged.

    Args:
        staged: the folder where the new fragments are.
        ref: the version.
        written: its rows.
        class_splits: the split by label that later versions must keep.
        this_ingest: the configuration, as manifests store it.
        is_current: whether it is the current version already.
        thorough: compare every byte of an existing version, not only sizes and times.
    """
    write_quarantine(storage.join(staged, QUARANTINE), written.problems)
    write_class_splits(staged, class_splits)
    write_ids(staged, [row.sample.id for row in written.rows])
    outcome: IngestOutcome = "made"
    if storage.is_complete(ref.uri):
        try:
            (storage.verify if thorough else storage.verify_opened)(ref.uri)
            outcome = "current" if is_current else "found"
        except CorruptArtifact as error:
            logger.warning("made again, since it was damaged: %s", error)
            storage.delete(ref.uri)
            outcome = "repaired"
    description = {
        "ref": ref.model_dump(mode="json", exclude={"uri"}),
        "fragments": [fragment._asdict() for fragment in written.fragments],
        **this_ingest,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    storage.publish(staged, ref.uri, description, written.shared)
    return outcome


def _refuse_other_corrections(store: str, name: str, applied: Corrections) -> None:
    if read_corrections(store, name) != applied:
        raise IncompatibleArtifact(
            f"An ingest must not undo corrections; items of {name} were corrected meanwhile. Nothing was "
            "published; start again."
        )


def _merge_concurrent_ingest(
    split: ChosenSplit, former: FormerVersion, latest: FormerVersion, name: str
) -> ChosenSplit:
    """Add the class splits that another ingest of the same name published while this one was reading."""
    if not split.reassigns and latest.requested_split != former.requested_split:
        raise IncompatibleArtifact(
            f"One ingest of a dataset must end before the next starts; {versioned(name, latest.version)} was "
            f"meanwhile split by {latest.requested_split}. Nothing was published; start again."
        )
    if latest.version == former.version:
        return split
    known = {} if split.reassigns else latest.split_of_class
    differing = sorted(label for label, s in split.split_of_class.items() if known.get(label, s) != s)
    if differing:
        raise IncompatibleArtifact(
            f"One ingest of a dataset must end before the next starts; {versioned(name, latest.version)} was "
            f"published meanwhile, where {len(differing)} of these classes have the other split, such as "
            f"{differing[:_MAX_NAMED]}. Nothing was published; start again."
        )
    return replace(split, remembered={**known, **split.remembered})


def refuse_forgotten(store: str, ref: DatasetRef, written: VersionRows, outcome: IngestOutcome) -> None:
    """Remove a version with items that were forgotten while it was made, and raise.

    Args:
        store: the store's URI.
        ref: the version, published but not current yet: so `dml forget` finds it if it was not found here.
        written: its rows.
        outcome: what `publish_version` has returned; only a version that it made is removed.
    """
    forgotten = forgotten_ids(store, ref.name)
    num_forgotten = sum(digest_of_id(id_) in forgotten for id_ in written.ids) if forgotten else 0
    if num_forgotten:
        if outcome == "made":
            storage.remove(ref.uri)
            parent = storage.named_folder(store, "datasets", ref.name)
            storage.remove_unshared(parent, {fragment.name for fragment in written.fragments})
        raise IncompatibleArtifact(
            f"A new version must not have forgotten items; {num_forgotten} items of {ref.name} were "
            "forgotten meanwhile. Nothing was published; start again. If `dml forget` was killed, give that "
            "command again first."
        )


def _shrinkage_note(ref: DatasetRef, former: FormerVersion, labels: Iterable[str]) -> list[str]:
    """A note if a source has fewer images or classes than at the latest ingest, or no class in common."""
    before = versioned(ref.name, former.version)
    if former.version is not None and former.split_of_class.keys().isdisjoint(labels):
        return [
            f"none of these classes is in {before}, which this version replaces; give a "
            "different source a different --name"
        ]
    if ref.rows >= former.rows and ref.classes >= former.classes:
        return []
    return [
        f"fewer than in {before}: {ref.rows} of {former.rows} images, {ref.classes} of "
        f"{former.classes} classes"
    ]


def _split_note(ref: DatasetRef, split: str) -> str:
    test = ref.splits.get(TEST)
    if test is None:
        return f"nothing is held out (split {split}): evaluate on another, dml train {ref.name} --test OTHER"
    return (
        f"held out for test: {test.classes} of {ref.classes} classes ({test.classes / ref.classes:.0%}), "
        f"{test.rows} of {ref.rows} images ({test.rows / ref.rows:.0%}), by split {split}"
    )


def _contradictions_note(contradictions: Sequence[Sequence[Row]], refused: bool) -> list[str]:
    """A note about images with several labels."""
    if not contradictions:
        return []
    apart = [len({row.split for row in rows}) > 1 for rows in contradictions]
    ordered = sorted(range(len(apart)), key=lambda number: not apart[number])
    examples = [
        " and ".join(f"{row.sample.id} ({row.label}, {row.split})" for row in contradictions[number])
        for number in ordered[:_MAX_NAMED]
    ]
    treatment = "in quarantine" if refused else "kept; --set quarantine_contradictions=true removes them"
    return [
        f"{len(contradictions)} images have several labels, {sum(apart)} of them in train and in test "
        f"({treatment}): {'; '.join(examples)}"
    ]


def _duplicates_note(rows: Sequence[Row]) -> list[str]:
    """A note about images that occur more than once under one label."""
    rows_by_image: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.label, row.sample.id)):
        rows_by_image.setdefault((row.label, row.sha256), []).append(row)
    duplicates = [same for same in rows_by_image.values() if len(same) > 1]
    if not duplicates:
        return []
    examples = [" and ".join(row.sample.id for row in same[:_MAX_NAMED]) for same in duplicates]
    in_test = sum(same[0].split == TEST for same in duplicates)
    return [
        f"{len(duplicates)} images occur more than once under their label, {in_test} of them in test, where "
        f"each is an easy match for the other: {'; '.join(examples[:_MAX_NAMED])}"
    ]


def _lost_classes_note(split_of_class: Mapping[str, str], rows: Iterable[Row]) -> list[str]:
    lost = sorted(set(split_of_class) - {row.label for row in rows})
    return [f"{len(lost)} classes have lost all their images, such as {lost[:_MAX_NAMED]}"] if lost else []


def ingest_config_of(ref: DatasetRef) -> IngestConfig:
    """The configuration of a dataset version's ingest, for repeating it."""
    return IngestConfig.model_validate(storage.read_manifest(ref.uri)["ingest"])


def _list(source: Source, config: IngestConfig) -> Listing:
    try:
        return source.list()
    except (DmlError, MemoryError):
        raise
    except Exception as error:  # files of others can fail in any way
        raise InvalidData(
            f"The list files of {config.source} must match its layout; reading them failed: {error!r}. "
            "Download it again, or name another layout."
        ) from error


def _without_forgotten(listing: Listing, forgotten: frozenset[str]) -> tuple[Listing, list[str]]:
    """The listing without forgotten items, and a note about them."""
    if not forgotten:
        return listing, []

    def is_kept(entry: Sample | Problem) -> bool:
        return digest_of_id(entry.id) not in forgotten

    filtered = replace(
        listing,
        samples=[sample for sample in listing.samples if is_kept(sample)],
        problems=[problem for problem in listing.problems if is_kept(problem)],
    )
    num_removed = len(listing.samples) - len(filtered.samples)
    return filtered, [f"{num_removed} forgotten items are left out"] if num_removed else []


def _screen(samples: Sequence[Sample]) -> tuple[list[Sample], list[Problem], list[str]]:
    """Samples with a label and a unique id, sorted by class and id.

    Labels are stripped and normalised to Unicode NFC, so that labels that look alike are one class.

    Returns:
        The samples, the problems of the others, and notes about labels that were merged.
    """
    raw_of: dict[str, set[str]] = {}
    for sample in samples:
        raw_of.setdefault(normalized(sample.label), set()).add(sample.label)
    samples = [sample._replace(label=normalized(sample.label)) for sample in samples]
    labels_of: dict[str, set[str]] = {}
    for sample in samples:
        labels_of.setdefault(sample.id, set()).add(sample.label)
    sample_by_id: dict[str, Sample] = {}
    problems = []
    for sample in samples:
        if not sample.label:
            problems.append(make_problem(sample, "missing label", "the label is blank"))
        elif len(labels_of[sample.id]) > 1:
            detail = f"this id also has the labels {sorted(labels_of[sample.id] - {sample.label})}"
            problems.append(make_problem(sample, "contradictory label", detail))
        elif sample.id in sample_by_id:
            problems.append(make_problem(sample, "duplicate id", f"as {sample_by_id[sample.id].locator}"))
        else:
            sample_by_id[sample.id] = sample
    ordered = sorted(sample_by_id.values(), key=lambda sample: (sample.label, sample.id))
    return ordered, problems, _merged_labels_note({label: raw for label, raw in raw_of.items() if label})


def _merged_labels_note(raw_of: Mapping[str, set[str]]) -> list[str]:
    merged = {label: sorted(raw) for label, raw in sorted(raw_of.items()) if len(raw) > 1}
    if not merged:
        return []
    examples = [f"{label!r} from {', '.join(map(ascii, raw))}" for label, raw in merged.items()]
    return [
        f"{sum(map(len, merged.values()))} labels became {len(merged)}, since they differ only in outer "
        f"space or in Unicode normalization: {'; '.join(examples[:_MAX_NAMED])}"
    ]


def _nothing_valid(config: IngestConfig, problems: Sequence[Problem], table: str) -> InvalidData:
    if not problems:
        return InvalidData(f"A source must list images; {config.source} lists none. Check its content.")
    return InvalidData(
        f"A dataset needs valid images in each of its splits; {config.source} has none in one of them. "
        f"In quarantine: {summarize_problems(problems)}. All of them are listed in {table}."
    )


def _results(
    jobs: Sequence[FragmentJob],
    num_workers: int | None,
    ticker: Ticker,
    progress: OnProgress | None,
) -> list[FragmentResult]:
    num_samples = sum(len(job.samples) for job in jobs)
    is_local = not jobs or num_workers == 1 or (num_workers is None and num_samples < _SMALL_SOURCE_ROWS)
    generator = _make_with_threads(jobs, ticker) if is_local else _make_with_ray(jobs, num_workers, ticker)
    results = []
    with closing(generator):
        for result in generator:
            results.append(result)
            if progress is not None:
                progress(len(results), len(jobs))
    return sorted(results)


class _Stopped(Exception):
    """Ends the threads of an ingest that was interrupted or has failed."""


def _make_with_threads(jobs: Sequence[FragmentJob], ticker: Ticker) -> Generator[FragmentResult]:
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


def _make_with_ray(
    jobs: Sequence[FragmentJob], num_workers: int | None, ticker: Ticker
) -> Generator[FragmentResult]:
    ticker.begin("starting Ray")
    source = jobs[0].source
    witness = find_witness(source, jobs[0].samples)
    with ray_session(num_workers):
        import ray.data

        quiet_ray_data()
        # Pickled, since Arrow would convert the objects to tables; one block per job, so that each is a task.
        items = [{"job": pickle.dumps((job, witness))} for job in jobs]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(_make_pickled)
        ticker.begin("reading with Ray", "images", sum(len(job.samples) for job in jobs))
        with closing(iter(dataset.iter_rows())) as rows:  # else Ray Data's threads outlive the session
            for row in rows:
                result = pickle.loads(row["result"])
                if isinstance(result, DmlError):
                    raise result
                require_missing_locally(source, result.problems, uri=jobs[0].config.source, node=row["node"])
                ticker.count(len(jobs[result.number].samples))
                yield result


def _make_pickled(row: dict[str, bytes]) -> dict[str, Any]:
    """A job's result. Users' errors are returned, since Ray would wrap raised ones and retry the task."""
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


def _contradictions(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each image that has several labels, of which at most one is right.

    Published datasets contain them (22 rows of CARS196's training half), and published results include them.
    """
    same: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.label, row.sample.id)):
        same.setdefault(row.sha256, []).append(row)
    return [rows for rows in same.values() if len({row.label for row in rows}) > 1]


def _contradiction_problems(contradictions: Sequence[Sequence[Row]]) -> list[Problem]:
    return [
        make_problem(
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
    """SHA-256 of the rows and problems, independent of their order, location and the number of workers."""
    digest = hashlib.sha256(storage.digest_of(SCHEMA_VERSION, dict(attributes)).encode())
    for row in sorted(rows, key=lambda row: row.sample.id):
        values = [_value(row.sample.attributes.get(name), kind) for name, kind in attributes.items()]
        digest.update(storage.digest_of(row.sample.id, row.sha256, row.label, row.split, values).encode())
    digest.update(storage.digest_of(sorted([problem.id, problem.reason] for problem in problems)).encode())
    return digest.hexdigest()


def _value(value: Any, kind: AttributeType) -> Any:
    return float(value) if kind == "double" and value is not None else value

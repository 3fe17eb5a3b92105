"""Ingest: a source in, a published dataset version out. It lists, splits, validates, writes and publishes.

Only what is new or has changed since the former version is read, and comes in new fragments (`delta`). Each
fragment is read, decoded and written independently, by a thread of this process or by Ray, with the same
bytes as result. Samples that cannot become rows go to the quarantine table. A killed ingest leaves no visible
files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dml import storage
from dml.config import IngestConfig, OfficialSplit
from dml.data.chosen_split import ChosenSplit, choose_split
from dml.data.continuity import require_same_rows
from dml.data.dataset import find_dataset
from dml.data.delta import Plan, make_plan
from dml.data.former import FormerVersion, find_former
from dml.data.former_rows import FormerRows, read_former_rows
from dml.data.fragment import Row
from dml.data.fragment_jobs import OnProgress, run_jobs
from dml.data.known_files import CurrentFile, KnownFile, current_files, read_known_files, write_known_files
from dml.data.last_ingest import LastIngest, last_ingest
from dml.data.listing import Listed, list_samples, require_continuity
from dml.data.notes import ingest_notes
from dml.data.publication import publish_version, refuse_forgotten, refuse_other_corrections
from dml.data.quarantine import (
    count_refusals,
    latest_quarantine,
    require_few,
    summarize_problems,
    write_quarantine,
)
from dml.data.schema import attribute_types
from dml.data.sources.detect import absolute
from dml.data.sources.sample import Problem
from dml.data.version import VersionRows, finish_version, make_ref
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidData, InvalidSetting
from dml.names import versioned
from dml.progress import Ticker
from dml.refs import DatasetRef
from dml.reports import IngestReport

_MAX_NAMED = 3


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
    _require_name_of_its_own(store, config.name)
    config = config.model_copy(update={"source": absolute(config.source)})
    listed, former = _list(config, store, ticker)
    split = choose_split(listed.samples, config.split, listed.default_split, former)
    config = config.model_copy(update={"split": split.requested})
    parent = storage.named_folder(store, "datasets", config.name)
    with storage.staged(storage.join(parent, "ingest")) as staged:
        ticker.begin("comparing with the former version")
        plan, files = _plan(config, store, listed, split.split_of_class, former, staged, reread, damaged)
        require_continuity(listed, plan.former)
        written = _write_fragments(config, plan, listed, ticker, progress)
        _require_usable(config, store, listed, split, written)
        with storage.locked_pointer(parent) as pointer:
            split = _merge_concurrent_ingest(split, former, find_former(store, config.name), config.name)
            refuse_other_corrections(store, config.name, listed.corrections)
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
        notes=ingest_notes(config, ref, listed, split, former, written),
    )


def _require_name_of_its_own(store: str, name: str) -> None:
    if storage.list_versions(storage.named_folder(store, "vectors", name)):
        raise InvalidSetting(
            f"A dataset must have a name of its own; {name!r} is that of imported vectors. Give another: "
            "--name."
        )


def _list(config: IngestConfig, store: str, ticker: Ticker) -> tuple[Listed, FormerVersion]:
    """The samples of the source, and the former version that they are compared with."""
    ticker.begin("listing", "entries")
    listed = list_samples(config, store, ticker)
    storage.mark_store(store)
    former = find_former(store, config.name)
    _require_valid(config, store, listed.problems, listed.num_rows, is_empty=not listed.samples)
    if isinstance(former.split, OfficialSplit):
        kept = listed.corrections.keep_splits(listed.samples, former.split_of_class)
        listed = replace(listed, samples=kept)
    return listed, former


def _plan(
    config: IngestConfig,
    store: str,
    listed: Listed,
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
    config: IngestConfig, plan: Plan, listed: Listed, ticker: Ticker, progress: OnProgress | None
) -> VersionRows:
    """Read and write what the plan says."""
    attributes = attribute_types([sample.attributes for sample in listed.samples])
    results = run_jobs(plan.jobs, config.num_workers, ticker, progress)
    ticker.begin("comparing images and labels")
    return finish_version(config, plan, results, attributes, listed.problems)


def _require_usable(
    config: IngestConfig, store: str, listed: Listed, split: ChosenSplit, written: VersionRows
) -> None:
    """Refuse rows that became others than those which were listed, and a version with an empty split."""
    if listed.ids_are_rows and listed.marked:
        require_same_rows(written.changes.changed, config.source, listed.marked)
    splits = {row.split for row in written.rows}
    is_empty = not written.rows or splits != set(split.split_of_class.values())
    _require_valid(config, store, written.problems, listed.num_rows, is_empty=is_empty)


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


def _require_valid(
    config: IngestConfig, store: str, problems: Sequence[Problem], num_listed: int, *, is_empty: bool
) -> None:
    """Write the quarantine table, also for a failed ingest; fail if too many rows or all rows are refused."""
    table = latest_quarantine(store, config.name)
    write_quarantine(table, problems)
    require_few(problems, num_listed, config.max_quarantined, source=config.source, table=table)
    if is_empty:
        raise _nothing_valid(config, problems, table)


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


def ingest_config_of(ref: DatasetRef) -> IngestConfig:
    """The configuration of a dataset version's ingest, for repeating it."""
    return IngestConfig.model_validate(storage.read_manifest(ref.uri)["ingest"])


def _nothing_valid(config: IngestConfig, problems: Sequence[Problem], table: str) -> InvalidData:
    if not problems:
        return InvalidData(f"A source must list images; {config.source} lists none. Check its content.")
    return InvalidData(
        f"A dataset needs valid images in each of its splits; {config.source} has none in one of them. "
        f"In quarantine: {summarize_problems(problems)}. All of them are listed in {table}."
    )

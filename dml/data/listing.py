"""Listing: a source in, the samples out that can become rows, and the problems of the others.

Forgotten items are left out, corrected labels applied, labels normalised, and ids are unique.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dml import storage
from dml.config import IngestConfig, SplitConfig
from dml.data.continuity import require_listed, require_same_ids
from dml.data.corrected import Corrections, read_corrections
from dml.data.forgotten import digest_of_id, forgotten_ids
from dml.data.former_rows import FormerRows
from dml.data.fragment import make_problem
from dml.data.sources.access import Access
from dml.data.sources.detect import open_source
from dml.data.sources.sample import Listing, Problem, Sample, Source
from dml.errors import DmlError, InvalidData, InvalidSetting
from dml.labels import checked_label, normalized
from dml.progress import Ticker

_MAX_NAMED = 3


@dataclass(frozen=True)
class Listed:
    """A source's valid samples, and the problems of the others; none of them was read."""

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
        """How many entries the source has, valid or not."""
        return len(self.samples) + len(self.problems)


def list_samples(config: IngestConfig, store: str, ticker: Ticker) -> Listed:
    """List a source, without reading an image.

    Args:
        config: the source, and what it may read.
        store: the store's URI; it is no part of a source that it lies in.
        ticker: of the running stage.

    Returns:
        The samples with a label and a unique id, sorted by class and id.

    Raises:
        InvalidData: an unknown layout, or list files that do not match it.
        MissingArtifact: there is no such source.
        InvalidSetting: the source's name or settings are invalid.
    """
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
    return Listed(
        source,
        samples,
        problems + listing.problems,
        listing.split,
        corrections,
        notes,
        listing.ids_are_rows,
        " and ".join(marked),
    )


def require_continuity(listed: Listed, former: FormerRows) -> None:
    """Refuse a source whose images only seem to be removed, or to be others than the former version's.

    Args:
        listed: what the source lists now.
        former: the rows of the former version.

    Raises:
        InvalidData, IncompatibleArtifact: as `require_listed` and `require_same_ids`.
    """
    ids = {sample.id for sample in listed.samples} | {problem.id for problem in listed.problems}
    require_listed(former.ids, ids, listed.problems)
    if listed.marked:
        require_same_ids(former.ids, ids, listed.marked)


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
    """Samples with a label that can be one and a unique id, sorted by class and id.

    Labels are stripped and normalised to Unicode NFC, so that labels that look alike are one class.

    Returns:
        The samples, the problems of the others, and notes about labels that were merged.
    """
    raw_of: dict[str, set[str]] = {}
    for sample in samples:
        raw_of.setdefault(normalized(sample.label), set()).add(sample.label)
    samples = [sample._replace(label=normalized(sample.label)) for sample in samples]
    unusable = {label: why for label in raw_of if label and (why := _why_unusable(label))}
    labels_of: dict[str, set[str]] = {}
    for sample in samples:
        labels_of.setdefault(sample.id, set()).add(sample.label)
    sample_by_id: dict[str, Sample] = {}
    problems = []
    for sample in samples:
        if not sample.label:
            problems.append(make_problem(sample, "missing label", "the label is blank"))
        elif sample.label in unusable:
            problems.append(make_problem(sample, "unusable label", unusable[sample.label]))
        elif len(labels_of[sample.id]) > 1:
            detail = f"this id also has the labels {sorted(labels_of[sample.id] - {sample.label})}"
            problems.append(make_problem(sample, "contradictory label", detail))
        elif sample.id in sample_by_id:
            problems.append(make_problem(sample, "duplicate id", f"as {sample_by_id[sample.id].locator}"))
        else:
            sample_by_id[sample.id] = sample
    ordered = sorted(sample_by_id.values(), key=lambda sample: (sample.label, sample.id))
    return (
        ordered,
        problems,
        _merged_labels_note({label: raw for label, raw in raw_of.items() if label and label not in unusable}),
    )


def _why_unusable(label: str) -> str:
    """What is wrong with a label; empty: nothing."""
    try:
        checked_label("A label", label)
    except InvalidSetting as error:
        return str(error)
    return ""


def _merged_labels_note(raw_of: Mapping[str, set[str]]) -> list[str]:
    merged = {label: sorted(raw) for label, raw in sorted(raw_of.items()) if len(raw) > 1}
    if not merged:
        return []
    examples = [f"{label!r} from {', '.join(map(ascii, raw))}" for label, raw in merged.items()]
    return [
        f"{sum(map(len, merged.values()))} labels became {len(merged)}, since they differ only in outer "
        f"space or in Unicode normalization: {'; '.join(examples[:_MAX_NAMED])}"
    ]

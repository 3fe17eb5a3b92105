"""Notes about a dataset version for its user: sentences on its split, size and repeated images."""

from collections.abc import Iterable, Mapping, Sequence

from dml.config import IngestConfig
from dml.data.chosen_split import ChosenSplit
from dml.data.former import FormerVersion
from dml.data.fragment import Row
from dml.data.listing import Listed
from dml.data.schema import TEST
from dml.data.version import VersionRows
from dml.names import versioned
from dml.refs import DatasetRef

_MAX_NAMED = 3


def ingest_notes(
    config: IngestConfig,
    ref: DatasetRef,
    listed: Listed,
    split: ChosenSplit,
    former: FormerVersion,
    written: VersionRows,
) -> list[str]:
    """Sentences about how a version was made.

    Args:
        config: whether images with several labels were refused.
        ref: the version.
        listed: what the source listed, with notes of its own.
        split: of its classes.
        former: the version before it.
        written: its rows.

    Returns:
        The split first; nothing about what is as it should be.
    """
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

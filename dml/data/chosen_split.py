"""The split of a new version's classes: known classes keep theirs, unless the user asks for another split."""

from collections.abc import Sequence
from dataclasses import dataclass

from dml.config import SplitConfig
from dml.data.former import FormerVersion
from dml.data.sources.sample import Sample
from dml.data.split import split_classes
from dml.errors import DmlError

_MAX_NAMED = 5


@dataclass(frozen=True)
class ChosenSplit:
    """The split of the classes of a new version."""

    requested: SplitConfig | None
    """The split that a user chose, now or before; None if the source's layout chose it."""
    config: SplitConfig
    split_of_class: dict[str, str]
    remembered: dict[str, str]
    """`split_of_class`, and the split of classes that the source does not contain at present."""
    notes: list[str]
    reassigns: bool = False
    """Whether the requested split differs from the former one, so that all classes are assigned again."""


def choose_split(
    samples: Sequence[Sample], requested: SplitConfig | None, default: SplitConfig, former: FormerVersion
) -> ChosenSplit:
    """The split of a new version's classes: known classes keep their split, new ones are assigned.

    Args:
        samples: every sample of the source.
        requested: the user's choice; a different split than the former version's assigns all classes again.
        default: the layout's split, used if no user ever chose one.
        former: the current version.

    Raises:
        DmlError: as `split_classes`.
    """
    config, known = requested or former.requested_split or default, former.split_of_class
    reassigns = requested is not None and former.split is not None and requested != former.split
    try:
        split_of_class = split_classes(samples, config, {} if reassigns else known)
    except DmlError as error:
        if requested is not None:
            raise
        if former.requested_split is None:
            raise type(error)(
                f"{error} The source's layout is split by {default}; choose another, dml ingest SOURCE "
                "--split SPLIT."
            ) from error
        raise type(error)(
            f"{error} Version {former.version} was split by {config}; choose another, dml ingest SOURCE "
            "--split SPLIT."
        ) from error
    changed = sorted(label for label, split in split_of_class.items() if known.get(label, split) != split)
    notes = []
    if reassigns or changed:
        reason = "requested" if reassigns else "given by the source"
        examples = f", such as {changed[:_MAX_NAMED]}" if changed else ""
        notes.append(
            f"split {config} ({reason}) instead of {former.split} of version {former.version}: "
            f"{len(changed)} of {len(split_of_class)} classes change their split{examples}"
        )
    remembered = split_of_class if reassigns else {**known, **split_of_class}
    return ChosenSplit(
        requested or former.requested_split, config, split_of_class, remembered, notes, reassigns
    )

"""Which classes are held out: train and test share none."""

from collections import defaultdict
from collections.abc import Sequence

from dml.config import AttributeSplit, ClassSplit, OfficialSplit, SplitConfig
from dml.data.sources.sample import Sample
from dml.errors import InvalidData, InvalidSetting


def split_classes(samples: Sequence[Sample], config: SplitConfig) -> dict[str, str]:
    """The split of every label.

    Args:
        samples: all of them, with a label.
        config: how to hold classes out.

    Returns:
        label to "train" or "test".

    Raises:
        InvalidData: the source's own split is missing or has a class on both sides, or a class has several
            values of the attribute to split by.
        InvalidSetting: an attribute or value that no sample has.
    """
    labels = sorted({sample.label for sample in samples})
    match config:
        case OfficialSplit():
            return _official(samples)
        case ClassSplit(test_fraction=fraction):
            first_test = len(labels) - round(len(labels) * fraction)
            return {label: "train" if i < first_test else "test" for i, label in enumerate(labels)}
        case AttributeSplit():
            return _by_attribute(samples, config)


def _official(samples: Sequence[Sample]) -> dict[str, str]:
    splits = defaultdict(set)
    for sample in samples:
        splits[sample.label].add(sample.split or "")
    unsplit = [label for label, found in splits.items() if "" in found]
    if unsplit:
        raise InvalidData(
            f"The split 'official' must come with the source; {len(unsplit)} classes have none, such as "
            f"{unsplit[:3]}. Choose --split classes:0.5, or by an attribute."
        )
    shared = [label for label, found in splits.items() if len(found) > 1]
    if shared:
        raise InvalidData(
            f"Train and test must share no class; {len(shared)} classes are in both, such as {shared[:3]}. "
            "Choose --split classes:0.5, or correct the source's split."
        )
    return {label: next(iter(found)) for label, found in splits.items()}


def _by_attribute(samples: Sequence[Sample], config: AttributeSplit) -> dict[str, str]:
    values = defaultdict(set)
    for sample in samples:
        values[sample.label].add(str(sample.attributes.get(config.name)))
    mixed = [label for label, found in values.items() if len(found) > 1]
    if mixed:
        raise InvalidData(
            f"Every class must have one value of {config.name!r} to be split by it; {len(mixed)} have "
            f"several, such as {mixed[:3]}. Split by classes, or by another attribute."
        )
    known = sorted({value for found in values.values() for value in found})
    if known in ([], ["None"]):
        raise InvalidSetting(
            f"The attribute to split by must be one the source has; got {config.name!r}, and it has "
            f"{sorted({name for sample in samples for name in sample.attributes})}."
        )
    if isinstance(config.test_values, int):
        held_out = known[max(len(known) - config.test_values, 0) :]
    else:
        held_out = list(config.test_values)
        unknown = sorted(set(held_out) - set(known))
        if unknown:
            raise InvalidSetting(
                f"The held-out values of {config.name!r} must occur; {unknown} do not. There are {known}."
            )
    return {label: "test" if found & set(held_out) else "train" for label, found in values.items()}

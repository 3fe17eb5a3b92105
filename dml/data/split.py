"""Which classes are for training and which for test: never a class in both."""

from collections.abc import Sequence
from typing import Any

from dml.config import AttributeSplit, ClassSplit, SplitConfig
from dml.data.schema import TEST, TRAIN
from dml.data.sources.sample import Sample
from dml.errors import InvalidData, InvalidSetting

_NAMED_AT_MOST = 5


def split_of_classes(samples: Sequence[Sample], config: SplitConfig) -> dict[str, str]:
    """The split of each class.

    Args:
        samples: every sample of a source.
        config: how to split.

    Returns:
        From label to "train" or "test".

    Raises:
        InvalidData: the source has no such split, a class is in both, or an attribute varies in a class.
        InvalidSetting: an attribute's values that it does not have, or that leave nothing for training.
    """
    match config:
        case ClassSplit():
            return _by_class(sorted({sample.label for sample in samples}), config)
        case AttributeSplit():
            return _by_attribute(samples, config)
        case _:
            return _official(samples)


def _by_class(labels: Sequence[str], config: ClassSplit) -> dict[str, str]:
    num_test = round(len(labels) * config.test_fraction)
    if 0 < config.test_fraction < 1:
        if len(labels) < 2:
            raise InvalidData(
                f"A split into train and test classes needs at least 2 classes; got {list(labels)}. "
                "Use split classes:0 (all for training) or classes:1 (all for test)."
            )
        num_test = min(max(num_test, 1), len(labels) - 1)
    num_train = len(labels) - num_test
    return {label: TRAIN if rank < num_train else TEST for rank, label in enumerate(labels)}


def _by_attribute(samples: Sequence[Sample], config: AttributeSplit) -> dict[str, str]:
    value_of = _constant_in_class(samples, config.name)
    values = sorted(set(value_of.values()), key=lambda value: (str(type(value)), value))
    if isinstance(config.test_values, int):
        if not 0 < config.test_values < len(values):
            raise InvalidSetting(
                f"The test split must take at least 1 and leave at least 1 of the {len(values)} values of "
                f"{config.name!r}; got {config.test_values}."
            )
        held_out = {str(value) for value in values[-config.test_values :]}
    else:
        held_out = set(config.test_values)
        unknown = sorted(held_out - {str(value) for value in values})
        if unknown:
            raise InvalidSetting(f"{config.name!r} must be one of {values}; got {unknown}.")
    return {label: TEST if str(value) in held_out else TRAIN for label, value in value_of.items()}


def _constant_in_class(samples: Sequence[Sample], name: str) -> dict[str, Any]:
    value_of: dict[str, Any] = {}
    for sample in samples:
        value = sample.attributes.get(name)
        if value is None:
            have = sorted(sample.attributes)
            raise InvalidData(
                f"Every sample must have the attribute {name!r} to be split by it; {sample.id!r} has {have}."
            )
        if value_of.setdefault(sample.label, value) != value:
            raise InvalidData(
                f"Attribute {name!r} must have one value in a class to split by it; {sample.label!r} has "
                f"{value_of[sample.label]!r} and {value!r}. Split by another attribute, or by classes."
            )
    return value_of


def _official(samples: Sequence[Sample]) -> dict[str, str]:
    splits: dict[str, set[str]] = {}
    for sample in samples:
        if sample.split is None:
            raise InvalidData(
                f"The source must say a split for every sample to use its own; {sample.id!r} has none. "
                "Split by classes or by an attribute."
            )
        splits.setdefault(sample.label, set()).add(sample.split)
    both = sorted(label for label, found in splits.items() if len(found) > 1)
    if both:
        raise InvalidData(
            f"Train and test must share no class; {len(both)} are in both: {both[:_NAMED_AT_MOST]}. "
            "Split by classes or by an attribute."
        )
    return {label: found.pop() for label, found in splits.items()}

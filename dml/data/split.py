"""Assignment of classes to train or test; a class has one split and keeps it in later versions."""

from collections.abc import Mapping, Sequence
from typing import Any

from dml import storage
from dml.config import AttributeSplit, ClassSplit, NoSplit, SplitConfig
from dml.data.schema import TEST, TRAIN
from dml.data.sources.sample import Sample
from dml.errors import InvalidData, InvalidSetting
from dml.numbers import read_number

LABEL = "label"
"""Attribute name that stands for the class itself."""
_MAX_NAMED = 5


def split_classes(
    samples: Sequence[Sample], config: SplitConfig, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The split of each class; it does not depend on the order of the samples.

    Args:
        samples: every sample of a source.
        config: how to split.
        known: split by label of classes that keep their split, such as those of a former version. Ignored if
            the split comes from the source, or if nothing is held out.

    Returns:
        "train" or "test" by label.

    Raises:
        InvalidData: the source has no such split, a class is in both splits, or an attribute varies in a
            class.
        InvalidSetting: an attribute does not have the values, or no class is left for training.
    """
    labels = sorted({sample.label for sample in samples})
    match config:
        case ClassSplit():
            return _split_by_hash(labels, config.test_fraction, known or {})
        case AttributeSplit():
            return _split_by_attribute(samples, config, known or {})
        case NoSplit():
            return dict.fromkeys(labels, TRAIN)
        case _:
            return _official(samples)


def _split_by_hash(labels: Sequence[str], fraction: float, known: Mapping[str, str]) -> dict[str, str]:
    """Assign new classes in the order of their labels' hashes, to approach the fraction of all classes."""
    split_of = {label: known.get(label, TRAIN) for label in labels}
    new = sorted((label for label in labels if label not in known), key=_label_hash)
    missing = _num_test(labels, fraction) - list(split_of.values()).count(TEST)
    return split_of | dict.fromkeys(new[: max(missing, 0)], TEST)


def _label_hash(label: str) -> str:
    """A hash of the label, the same on every machine."""
    return storage.digest_of(LABEL, label)


def _num_test(labels: Sequence[str], fraction: float) -> int:
    """The number of test classes; at least two per split if there are four, so that both are usable."""
    rounded = round(len(labels) * fraction)
    if fraction in (0, 1):
        return rounded
    if len(labels) < 2:
        raise InvalidData(
            f"A split into train and test classes needs at least 2 classes; got {list(labels)}. "
            "Use split none (all for training) or classes:1 (all for test)."
        )
    least = 2 if len(labels) >= 4 else 1
    return min(max(rounded, least), len(labels) - least)


def _split_by_attribute(
    samples: Sequence[Sample], config: AttributeSplit, known: Mapping[str, str]
) -> dict[str, str]:
    value_of = _constant_in_class(samples, config.name)
    values = sorted(set(value_of.values()), key=lambda value: (str(type(value)), value))
    known_values = {value: known[label] for label, value in sorted(value_of.items()) if label in known}
    held_out = _held_out(values, config, known_values)
    return {
        label: known.get(label, TEST if value in held_out else TRAIN) for label, value in value_of.items()
    }


def _held_out(values: Sequence[Any], config: AttributeSplit, known_values: Mapping[Any, str]) -> set[Any]:
    """Values for test: the named or the last ones; values of known classes keep their split."""
    count = config.test_values
    texts = [str(count)] if isinstance(count, int) else list(count)
    matches = [[value for value in values if _is_spelt(value, text)] for text in texts]
    if not isinstance(count, int) or matches[0]:
        unknown = sorted({text for text, matching in zip(texts, matches, strict=True) if not matching})
        if unknown:
            raise InvalidSetting(f"{config.name!r} must be one of {_shown_values(values)}; got {unknown}.")
        return {value for matching in matches for value in matching}
    if not 0 < count < len(values):
        raise InvalidSetting(
            f"The test split must take at least 1 and leave at least 1 of the {len(values)} values of "
            f"{config.name!r}; got {count}, which is none of the values {_shown_values(values)}."
        )
    held_out = [value for value in values if known_values.get(value) == TEST]
    new = [value for value in reversed(values) if value not in known_values]
    return {*held_out, *new[: max(count - len(held_out), 0)]}


def _is_spelt(value: Any, text: str) -> bool:
    """Whether a text stands for a value: `true` for a boolean, `2` and `2.0` for a number."""
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, str):
        return value == text
    try:
        return bool(read_number(text) == value)
    except ValueError:
        return False


def _shown_values(values: Sequence[Any]) -> str:
    shown = ", ".join(
        str(value).lower() if isinstance(value, bool) else str(value) for value in values[:_MAX_NAMED]
    )
    return shown + (f" and {len(values) - _MAX_NAMED} more" if len(values) > _MAX_NAMED else "")


def _constant_in_class(samples: Sequence[Sample], name: str) -> dict[str, Any]:
    if name == LABEL:
        return {sample.label: sample.label for sample in samples}
    attributes = sorted({key for sample in samples for key in sample.attributes})
    if name not in attributes:
        raise InvalidData(
            f"The source must have the attribute {name!r} to be split by it; it has {attributes}. Split by "
            "one of these, or by classes."
        )
    value_of: dict[str, Any] = {}
    for sample in samples:
        value = sample.attributes.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise InvalidData(
                f"Every sample must have a value of the attribute {name!r} to be split by it; the value of "
                f"{sample.id!r} is missing. Fill it in, or split by another attribute or by classes."
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
                f"The source must give a split for every sample to use the official split; {sample.id!r} has "
                "none. "
                "Split by classes or by an attribute."
            )
        splits.setdefault(sample.label, set()).add(sample.split)
    both = sorted(label for label, names in splits.items() if len(names) > 1)
    if both:
        raise InvalidData(
            f"Train and test must share no class; {len(both)} are in both: {both[:_MAX_NAMED]}. "
            "Split by classes or by an attribute."
        )
    return {label: names.pop() for label, names in splits.items()}

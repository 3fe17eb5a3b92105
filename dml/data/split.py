"""Which classes are for training and which for test: a class is in one of them and stays there."""

from collections.abc import Mapping, Sequence
from typing import Any

from dml import storage
from dml.config import AttributeSplit, ClassSplit, NoSplit, SplitConfig
from dml.data.schema import TEST, TRAIN
from dml.data.sources.sample import Sample
from dml.errors import InvalidData, InvalidSetting

LABEL = "label"
"""Splits by it as by an attribute: the class itself."""
_NAMED_AT_MOST = 5


def split_of_classes(
    samples: Sequence[Sample], config: SplitConfig, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The split of each class: a function of its arguments alone, whatever the samples' order.

    Args:
        samples: every sample of a source.
        config: how to split.
        known: from label to split, of classes that keep theirs, as those of a former version. They count for
            nothing where the source brings its own split, or nothing is held out.

    Returns:
        From label to "train" or "test".

    Raises:
        InvalidData: the source has no such split, a class is in both, or an attribute varies in a class.
        InvalidSetting: an attribute's values that it does not have, or that leave nothing for training.
    """
    labels = sorted({sample.label for sample in samples})
    match config:
        case ClassSplit():
            return _by_class(labels, config.test_fraction, known or {})
        case AttributeSplit():
            return _by_attribute(samples, config, known or {})
        case NoSplit():
            return dict.fromkeys(labels, TRAIN)
        case _:
            return _official(samples)


def _by_class(labels: Sequence[str], fraction: float, known: Mapping[str, str]) -> dict[str, str]:
    """New classes are dealt by the hashes of their labels, so that the share of all is approached."""
    split_of = {label: known.get(label, TRAIN) for label in labels}
    new = sorted((label for label in labels if label not in known), key=_hash_of)
    missing = _num_test(labels, fraction) - list(split_of.values()).count(TEST)
    return split_of | dict.fromkeys(new[: max(missing, 0)], TEST)


def _hash_of(label: str) -> str:
    """A number that says nothing of the label's place in the alphabet, and is the same everywhere."""
    return storage.digest_of(LABEL, label)


def _num_test(labels: Sequence[str], fraction: float) -> int:
    """At least two classes on each side, where there are four: one alone can be neither learnt nor judged."""
    wanted = round(len(labels) * fraction)
    if fraction in (0, 1):
        return wanted
    if len(labels) < 2:
        raise InvalidData(
            f"A split into train and test classes needs at least 2 classes; got {list(labels)}. "
            "Use split none (all for training) or classes:1 (all for test)."
        )
    least = 2 if len(labels) >= 4 else 1
    return min(max(wanted, least), len(labels) - least)


def _by_attribute(
    samples: Sequence[Sample], config: AttributeSplit, known: Mapping[str, str]
) -> dict[str, str]:
    value_of = _constant_in_class(samples, config.name)
    values = sorted(set(value_of.values()), key=lambda value: (str(type(value)), value))
    of_known = {value: known[label] for label, value in sorted(value_of.items()) if label in known}
    held_out = _held_out(values, config, of_known)
    return {
        label: known.get(label, TEST if value in held_out else TRAIN) for label, value in value_of.items()
    }


def _held_out(values: Sequence[Any], config: AttributeSplit, of_known: Mapping[Any, str]) -> set[Any]:
    """Values for test: those named, or so many of the last; values of known classes stay."""
    count = config.test_values
    named = [str(count)] if isinstance(count, int) else list(count)
    found = [[value for value in values if _is_spelt(value, text)] for text in named]
    if not isinstance(count, int) or found[0]:
        unknown = sorted({text for text, those in zip(named, found, strict=True) if not those})
        if unknown:
            raise InvalidSetting(f"{config.name!r} must be one of {_some(values)}; got {unknown}.")
        return {value for those in found for value in those}
    if not 0 < count < len(values):
        raise InvalidSetting(
            f"The test split must take at least 1 and leave at least 1 of the {len(values)} values of "
            f"{config.name!r}; got {count}, which is none of the values {_some(values)}."
        )
    held_out = [value for value in values if of_known.get(value) == TEST]
    new = [value for value in reversed(values) if value not in of_known]
    return {*held_out, *new[: max(count - len(held_out), 0)]}


def _is_spelt(value: Any, text: str) -> bool:
    """Whether a text names a value: `true` one of truth, `2` and `2.0` a number."""
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, str):
        return value == text
    try:
        return bool(float(text) == value)
    except ValueError:
        return False


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(
        str(value).lower() if isinstance(value, bool) else str(value) for value in values[:_NAMED_AT_MOST]
    )
    return shown + (f" and {len(values) - _NAMED_AT_MOST} more" if len(values) > _NAMED_AT_MOST else "")


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
                f"Every sample must have a value of the attribute {name!r} to be split by it; that of "
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

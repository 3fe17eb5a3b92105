"""Train and test never share a class."""

import pytest

from dml.config import AttributeSplit, ClassSplit, OfficialSplit
from dml.data.sources.sample import Sample
from dml.data.split import split_of_classes
from dml.errors import InvalidData, InvalidSetting


def samples(**labels):
    """label=group, two samples each."""
    return [Sample(f"{k}{i}", "", k, attributes={"group": v}) for k, v in labels.items() for i in (0, 1)]


FOUR = samples(a="x", b="y", c="x", d="z")


@pytest.mark.parametrize(
    ("fraction", "test"), [(0.5, "cd"), (0.25, "d"), (0.01, "d"), (0.99, "bcd"), (0, ""), (1, "abcd")]
)
def test_the_last_classes_are_for_test(fraction, test):
    split_of = split_of_classes(FOUR, ClassSplit(test_fraction=fraction))
    assert "".join(label for label, split in split_of.items() if split == "test") == test


def test_one_class_cannot_be_split():
    with pytest.raises(InvalidData, match="classes:0"):
        split_of_classes(samples(a="x"), ClassSplit())


@pytest.mark.parametrize(("values", "test"), [(1, "d"), (2, "bd"), (("x",), "ac"), (("x", "y", "z"), "abcd")])
def test_whole_groups_are_held_out(values, test):
    split_of = split_of_classes(FOUR, AttributeSplit(name="group", test_values=values))
    assert "".join(sorted(label for label, split in split_of.items() if split == "test")) == test


def test_groups_that_cannot_be_held_out_are_refused():
    with pytest.raises(InvalidSetting, match="3 values"):
        split_of_classes(FOUR, AttributeSplit(name="group", test_values=3))
    with pytest.raises(InvalidSetting, match=r"\['w'\]"):
        split_of_classes(FOUR, AttributeSplit(name="group", test_values=("w",)))
    with pytest.raises(InvalidData, match="attribute 'colour'"):
        split_of_classes(FOUR, AttributeSplit(name="colour", test_values=1))
    mixed = [*FOUR, Sample("a9", "", "a", attributes={"group": "z"})]
    with pytest.raises(InvalidData, match="one value in a class"):
        split_of_classes(mixed, AttributeSplit(name="group", test_values=1))


def test_an_official_split_must_be_there_and_share_no_class():
    official = [Sample("1", "", "a", "train"), Sample("2", "", "b", "test")]
    assert split_of_classes(official, OfficialSplit()) == {"a": "train", "b": "test"}
    with pytest.raises(InvalidData, match=r"share no class.*'a'"):
        split_of_classes([*official, Sample("3", "", "a", "test")], OfficialSplit())
    with pytest.raises(InvalidData, match="'a0' has none"):
        split_of_classes(FOUR, OfficialSplit())

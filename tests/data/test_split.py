"""Train and test never share a class."""

import pytest

from dml.config import AttributeSplit, ClassSplit, NoSplit, OfficialSplit
from dml.data.sources.sample import Sample
from dml.data.split import split_classes
from dml.errors import InvalidData, InvalidSetting


def samples(**labels):
    """label=group, two samples each."""
    return [Sample(f"{k}{i}", "", k, attributes={"group": v}) for k, v in labels.items() for i in (0, 1)]


FOUR = samples(a="x", b="y", c="x", d="z")
MANY = samples(**{f"c{number:03d}": "x" for number in range(200)})


def held_out(split_of) -> set[str]:
    return {label for label, split in split_of.items() if split == "test"}


@pytest.mark.parametrize(
    ("classes", "fraction", "test"),
    [
        (200, 0.5, 100),
        (200, 0.3, 60),
        (200, 0, 0),
        (200, 1, 200),
        (200, 0.001, 2),
        (200, 0.999, 198),
        (4, 0.01, 2),
        (4, 0.99, 2),
        (3, 0.5, 2),
        (3, 0.01, 1),
        (2, 0.5, 1),
    ],
)
def test_the_requested_share_of_classes_is_held_out_and_two_on_each_side_if_there_are_four(
    classes, fraction, test
):
    split_of = split_classes(MANY[: 2 * classes], ClassSplit(test_fraction=fraction))
    assert len(held_out(split_of)) == test


def test_the_split_of_a_class_does_not_come_from_its_place_in_the_alphabet_or_in_the_source():
    split_of = split_classes(MANY, ClassSplit())
    first_half = sum(label < "c100" for label in held_out(split_of))
    assert 35 < first_half < 65, "of 100, where the last in the alphabet would be 0"
    assert split_classes(MANY[::-1], ClassSplit()) == split_of


def test_known_classes_keep_their_side_and_new_ones_make_up_the_share():
    first = split_classes(MANY[:40], ClassSplit())
    for classes in range(21, 200):
        later = split_classes(MANY[: 2 * classes], ClassSplit(), first)
        assert {label: later[label] for label in first} == first
        assert len(held_out(later)) == round(classes / 2)
        first = later


def test_known_classes_keep_their_side_also_where_the_share_is_exceeded():
    known = dict.fromkeys(["a", "b", "c"], "test")
    assert held_out(split_classes(FOUR, ClassSplit(test_fraction=0.25), known)) == {"a", "b", "c"}


def test_nothing_is_held_out_where_that_is_requested():
    assert held_out(split_classes(FOUR, NoSplit(), {"a": "test"})) == set()


def test_one_class_cannot_be_split():
    with pytest.raises(InvalidData, match=r"none .all for training. or classes:1"):
        split_classes(samples(a="x"), ClassSplit())


@pytest.mark.parametrize(("values", "test"), [(1, "d"), (2, "bd"), (("x",), "ac"), (("x", "y", "z"), "abcd")])
def test_whole_groups_are_held_out(values, test):
    split_of = split_classes(FOUR, AttributeSplit(name="group", test_values=values))
    assert "".join(sorted(label for label, split in split_of.items() if split == "test")) == test


def test_classes_are_held_out_by_name():
    split = AttributeSplit(name="label", test_values=("a", "d"))
    assert held_out(split_classes(FOUR, split)) == {"a", "d"}
    assert held_out(split_classes(FOUR, AttributeSplit(name="label", test_values=1))) == {"d"}


def test_a_number_that_is_a_value_is_that_value_and_else_a_count():
    years = samples(a=2019, b=2020, c=2021, d=2)
    assert held_out(split_classes(years, AttributeSplit(name="group", test_values=2019))) == {"a"}
    assert held_out(split_classes(years, AttributeSplit(name="group", test_values=2))) == {"d"}
    assert held_out(split_classes(years, AttributeSplit(name="group", test_values=3))) == {"a", "b", "c"}


def test_groups_keep_their_side_and_new_ones_make_up_the_count():
    last = AttributeSplit(name="group", test_values=1)
    known = split_classes(FOUR, last)
    assert held_out(known) == {"d"}
    later = samples(a="x", a2="x", b="y", c="x", d="z", d2="z", e="zz")
    assert held_out(split_classes(later, last, known)) == {"d", "d2"}
    assert held_out(split_classes(later, AttributeSplit(name="group", test_values=2), known)) == {
        "d",
        "d2",
        "e",
    }


@pytest.mark.parametrize("missing", [None, "", " "])
def test_a_missing_value_of_the_attribute_is_reported_as_such(missing):
    with pytest.raises(InvalidData, match=r"value of the attribute 'group'.*'a9' is missing"):
        split_classes(
            [*FOUR, Sample("a9", "", "a", attributes={"group": missing})],
            AttributeSplit(name="group", test_values=1),
        )


def test_groups_that_cannot_be_held_out_are_refused():
    with pytest.raises(InvalidSetting, match="3 values"):
        split_classes(FOUR, AttributeSplit(name="group", test_values=3))
    with pytest.raises(InvalidSetting, match=r"\['w'\]"):
        split_classes(FOUR, AttributeSplit(name="group", test_values=("w",)))
    with pytest.raises(InvalidData, match="attribute 'colour'"):
        split_classes(FOUR, AttributeSplit(name="colour", test_values=1))
    mixed = [*FOUR, Sample("a9", "", "a", attributes={"group": "z"})]
    with pytest.raises(InvalidData, match="one value in a class"):
        split_classes(mixed, AttributeSplit(name="group", test_values=1))


def test_an_official_split_must_be_there_and_share_no_class():
    official = [Sample("1", "", "a", "train"), Sample("2", "", "b", "test")]
    assert split_classes(official, OfficialSplit()) == {"a": "train", "b": "test"}
    with pytest.raises(InvalidData, match=r"share no class.*'a'"):
        split_classes([*official, Sample("3", "", "a", "test")], OfficialSplit())
    with pytest.raises(InvalidData, match="'a0' has none"):
        split_classes(FOUR, OfficialSplit())


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        (True, False, ("true",)),
        (True, False, ("True",)),
        (2.0, 1.5, ("2",)),
        (2.0, 1.5, ("2.0",)),
        (2.0, 1.5, 2),
        (2, 7, ("2.0",)),
    ],
)
def test_a_value_may_be_named_as_its_source_writes_it(a, b, named):
    split = AttributeSplit(name="group", test_values=named)
    assert held_out(split_classes(samples(a=a, b=b), split)) == {"a"}


def test_a_number_in_a_text_stays_text():
    with pytest.raises(InvalidSetting, match=r"must be one of 002, 7; got \['2'\]"):
        split_classes(samples(a="002", b="7"), AttributeSplit(name="group", test_values=("2",)))

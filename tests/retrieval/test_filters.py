"""Conditions on item columns: each as a plain comparison of the row's value says."""

import pyarrow as pa
import pytest

from dml.errors import InvalidSetting
from dml.retrieval.conditions import matching_rows

ROWS = [
    {"script": "Greek", "year": 1990, "weight": 0.5, "sold": True, "label": "a=b"},
    {"script": "Latin", "year": 2001, "weight": 1.5, "sold": False, "label": "b"},
    {"script": None, "year": None, "weight": None, "sold": None, "label": "c"},
    {"script": "Old Norse", "year": 2010, "weight": -3.0, "sold": True, "label": "d|e"},
]
MORE = {
    "path": ["C:\\new", "D:\\", "x", "y"],
    "day": ["2024-02-29", "2024-03-01", None, "2024-03-02T08:00:00"],
    "seen": ["2024-03-01T12:00:00Z", "2024-03-01T12:00:01Z", None, ""],
    "unit price": [1, 2, None, None],
}
ITEMS = pa.Table.from_pydict({**pa.Table.from_pylist(ROWS).to_pydict(), **MORE})


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([], [0, 1, 2, 3]),
        (["script=Greek"], [0]),
        (["script = Old Norse "], [3]),
        (["script=Greek|Latin"], [0, 1]),
        (["script!=Greek"], [1, 2, 3]),
        (["script!=Greek|Latin"], [2, 3]),
        (["script=Greek", "script=Latin"], []),
        (["script=Greek | Latin"], [0, 1]),
        (["label=a=b"], [0]),
        (["year=2001"], [1]),
        (["year!=2001"], [0, 2, 3]),
        (["year>=2001"], [1, 3]),
        (["year>2001"], [3]),
        (["year<=2001"], [0, 1]),
        (["year<1990.5"], [0]),
        (["weight>-3"], [0, 1]),
        (["weight=1.5|-3"], [1, 3]),
        (["weight>=1e-1"], [0, 1]),
        (["sold=true"], [0, 3]),
        (["sold!=True"], [1, 2]),
        (["year>=1990", "year<2010", "sold=false"], [1]),
        ([r"label=d\|e"], [3]),
        ([r"label=b|d\|e"], [1, 3]),
        ([r"path=C:\new|D:\\|x"], [0, 1, 2]),
        (["weight="], [2]),
        (["weight!="], [0, 1, 3]),
        (["script="], [2]),
        (["script=Greek|"], [0, 2]),
        (["script!=Greek|"], [1, 3]),
        (["day>=2024-03-01"], [1, 3]),
        (["day>2024-02-29"], [1, 3]),
        (["day<2024-03-01"], [0]),
        (["day>=2024-03-01T12:30"], [3]),
        (["day=2024-03-01"], [1]),
        (["seen>2024-03-01T12:00"], [1]),
        (["seen>2024-03-01T14:00+02:00"], [1]),
        (["unit price>=2"], [1]),
    ],
)
def test_rows_that_satisfy_every_condition(where, expected):
    assert matching_rows(ITEMS, where).nonzero()[0].tolist() == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("script", "COLUMN=VALUE"),
        ("", "COLUMN=VALUE"),
        ("=Greek", "COLUMN=VALUE"),
        ("alphabet=Greek", "script.*year.*weight.*got 'alphabet'"),
        ("script>Greek", "neither, such as 'Greek'"),
        ("day>=2024", "ISO dates, so the value must be one"),
        ("day>=soon", "ISO dates"),
        ("sold<true", "compares numbers"),
        ("year=soon", "number"),
        ("year>=", "number"),
        ("year=2001.5", "whole number"),
        ("year=nan", "number"),
        ("year=inf", "number"),
        ("sold=yes", "true or false"),
        (f"year={10**30}", "fit the column's int64"),
        (f"year>{10**30}", "fit the column's int64"),
    ],
)
def test_what_says_nothing_is_refused_and_named(condition, message):
    with pytest.raises(InvalidSetting, match=message):
        matching_rows(ITEMS, [condition])


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            "script=Greeek",
            r"no item has script 'Greeek'.*There are 'Greek', 'Latin', 'Old Norse'.*mean 'Greek'",
        ),
        ("script=greek", "mean 'Greek'"),
        ("script=Greek|Latn", "no item has script 'Latn'.*mean 'Latin'"),
        ("script='Greek'", "mean 'Greek'.*without quotes"),
        ('script=="Greek"', "mean 'Greek'.*single =.*without quotes"),
        ("script==Greek", "mean 'Greek'.*single ="),
        ("year==2001", "number.*single ="),
        ("script=Greek AND year>2000", "a --where of its own"),
        ("year=1990,weight>0", "number.*a --where of its own"),
        ("label=d|e", r"no item has label 'd'"),
        ("script=Greek,Latin", r"If you mean several values, write 'script=Greek\|Latin'"),
        ("script=[Greek; 'Old Norse']", r"write 'script=Greek\|Old Norse'"),
        ("script=Greek or Latin", r"write 'script=Greek\|Latin'"),
        ("year=1990,2001", r"number.*write 'year=1990\|2001'"),
        ("year=2000", "no item has year 2000.*There are 1990, 2001, 2010"),
        ("scirpt=Greek", "mean 'script'"),
    ],
)
def test_a_value_that_no_item_has_is_refused_with_what_was_probably_meant(condition, message):
    with pytest.raises(InvalidSetting, match=message):
        matching_rows(ITEMS, [condition])


def test_a_comma_or_a_quote_that_belongs_to_a_value_is_no_reason_to_refuse():
    items = pa.table({"name": ["a=1,b=2", "'quoted'", "=x", "x and y=z"]})
    for place, name in enumerate(items["name"].to_pylist()):
        assert matching_rows(items, [f"name={name}"]).nonzero()[0].tolist() == [place]


def test_texts_of_more_than_two_gibibytes_are_texts_too():
    large = pa.table({name: ITEMS[name].cast(pa.large_string()) for name in ("script", "day")})
    for where in (["script=Greek"], ["script="], ["day>=2024-03-01"], ["script!=Greek|"]):
        assert matching_rows(large, where).tolist() == matching_rows(ITEMS, where).tolist()


def test_what_excludes_nothing_is_told_of(caplog):
    assert matching_rows(ITEMS, ["script!=Greeek"]).all()
    assert "Did you mean 'Greek'" in caplog.text
    assert "excludes nothing" in caplog.text


def test_truth_values_that_no_item_has_match_nothing():
    assert not matching_rows(pa.table({"sold": [True, None]}), ["sold=false"]).any()


def test_conditions_hold_over_several_chunks():
    chunked = pa.concat_tables([ITEMS, ITEMS.slice(1, 2), ITEMS.slice(0, 0)])
    assert matching_rows(chunked, ["script=Latin"]).nonzero()[0].tolist() == [1, 4]


def test_whole_numbers_beyond_two_to_the_53_are_compared_exactly():
    items = pa.table({"code": pa.array([2**53, 2**53 + 1])})
    assert matching_rows(items, [f"code={2**53 + 1}"]).tolist() == [False, True]
    assert matching_rows(items, [f"code>{2**53}"]).tolist() == [False, True]

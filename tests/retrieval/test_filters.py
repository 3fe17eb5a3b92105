"""Conditions on item columns: each as a plain comparison of the row's value says."""

import pyarrow as pa
import pytest

from dml.errors import InvalidSetting
from dml.retrieval.filters import matching_rows

ROWS = [
    {"script": "Greek", "year": 1990, "weight": 0.5, "sold": True, "label": "a=b"},
    {"script": "Latin", "year": 2001, "weight": 1.5, "sold": False, "label": "b"},
    {"script": None, "year": None, "weight": None, "sold": None, "label": "c"},
    {"script": "Old Norse", "year": 2010, "weight": -3.0, "sold": True, "label": "d|e"},
]
ITEMS = pa.Table.from_pylist(ROWS)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([], [0, 1, 2, 3]),
        (["script=Greek"], [0]),
        (["script = Old Norse "], [3]),
        (["script=Greek|Latin"], [0, 1]),
        (["script!=Greek"], [1, 2, 3]),
        (["script!=Greek|Latin"], [2, 3]),
        (["script=nowhere"], []),
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
        ("script>Greek", "compares numbers"),
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


def test_conditions_hold_over_several_chunks():
    chunked = pa.concat_tables([ITEMS, ITEMS.slice(1, 2), ITEMS.slice(0, 0)])
    assert matching_rows(chunked, ["script=Latin"]).nonzero()[0].tolist() == [1, 4]


def test_whole_numbers_beyond_two_to_the_53_are_compared_exactly():
    items = pa.table({"code": pa.array([2**53, 2**53 + 1])})
    assert matching_rows(items, [f"code={2**53 + 1}"]).tolist() == [False, True]
    assert matching_rows(items, [f"code>{2**53}"]).tolist() == [False, True]

"""Which items satisfy a filter: each as a plain comparison of the row's value says."""

import pyarrow as pa
import pytest

from dml.errors import InvalidFilter
from dml.retrieval.filters import col, matching_rows, parse

ROWS = [
    {"script": "Greek", "year": 1990, "weight": 0.5, "sold": True, "label": "a=b"},
    {"script": "Latin", "year": 2001, "weight": 1.5, "sold": False, "label": "b"},
    {"script": None, "year": None, "weight": None, "sold": None, "label": "O'Hara"},
    {"script": "Old Norse", "year": 2010, "weight": -3.0, "sold": True, "label": "d|e"},
]
MORE = {
    "path": ["C:\\new", "D:\\", "x", "y"],
    "day": ["2024-02-29", "2024-03-01", None, "2024-03-02T08:00:00"],
    "seen": ["2024-03-01T12:00:00Z", "2024-03-01T12:00:01Z", None, ""],
    "shot": ["2024-03-01 12:00:00.000000001", "2024-03-01 12:00:00.000000002", None, ""],
    "unit price": [1, 2, None, None],
    "suffix": ["0123", "1234", None, ""],
    "ratio": [float("nan"), 1.0, None, 2.0],
    "place": ["30.2,120.1", "30.25, 120.1", None, ""],
    "lat": [30.2, 30.25, None, -30.2],
    "lon": [120.1, 120.1, 120.1, float("nan")],
    "east": [120, 121, 122, 190],
    "mixed": ["2024-03-01T12:00Z", "2024-03-01", None, ""],
    "soon": ["2024-03-01", None, "unknown", ""],
    "unsaid": pa.array([None, "", None, None], pa.string()),
    "spot": ["30.2,120.1", "", "30.2;120.1", None],
}
ITEMS = pa.Table.from_pydict({**pa.Table.from_pylist(ROWS).to_pydict(), **MORE})


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([], [0, 1, 2, 3]),
        (None, [0, 1, 2, 3]),
        ("script = 'Greek'", [0]),
        ("script in ('Greek', 'Latin')", [0, 1]),
        ("script != 'Greek'", [1, 2, 3]),
        ("not script = 'Greek'", [1, 2, 3]),
        ("script not in ('Greek', 'Latin')", [2, 3]),
        (["script = 'Greek'", "script = 'Latin'"], []),
        ("label = 'a=b' or label = 'd|e'", [0, 3]),
        ("label = 'O''Hara'", [2]),
        ("path = 'C:\\new'", [0]),
        ("year = 2001", [1]),
        ("year = 2001.0", [1]),
        ("year != 2001", [0, 2, 3]),
        ("year >= 2001", [1, 3]),
        ("year > 2001", [3]),
        ("year <= 2001", [0, 1]),
        ("year < 1990.5", [0]),
        ("not year < 1990.5", [1, 2, 3]),
        ("year between 1990 and 2000.9", [0]),
        ("year between 1990.1 and 1990.9", []),
        ("weight > -3", [0, 1]),
        ("weight in (1.5, -3)", [1, 3]),
        ("weight >= 1e-1", [0, 1]),
        ("sold", [0, 3]),
        ("not sold", [1, 2]),
        ("sold = false", [1]),
        ("sold != True", [1, 2]),
        ("sold in (true, false)", [0, 1, 3]),
        (["year >= 1990 and year < 2010", "not sold"], [1]),
        ("weight is null", [2]),
        ("weight is not null", [0, 1, 3]),
        ("ratio is null", [0, 2]),
        ("ratio > 0", [1, 3]),
        ("ratio != 1", [0, 2, 3]),
        ("suffix is null", [2, 3]),
        ("suffix = '0123'", [0]),
        ("day >= 2024-03-01", [1, 3]),
        ("day > '2024-02-29'", [1, 3]),
        ("day < 2024-03-01", [0]),
        ("day between 2024-03-01 and 2024-03-02", [1]),
        ("day >= 2024-03-01T12:30", [3]),
        ("day = 2024-03-01", [1]),
        ("seen > 2024-03-01T12:00", [1]),
        ("seen > 2024-03-01T14:00+02:00", [1]),
        ("seen >= 2024-03-01", [0, 1]),
        ("shot > '2024-03-01 12:00:00.000000001'", [1]),
        ("shot >= 1600-01-01 and shot < 3000-01-01", [0, 1]),
        ('"unit price" >= 2', [1]),
        ("within(place, 30.2, 120.1, 5 km)", [0]),
        ("within(place, 30.2, 120.1, 6 km)", [0, 1]),
        ("not within(place, 30.2, 120.1, 6 km)", [2, 3]),
        ("within(lat, lon, 30.2, 120.1, 5 km)", [0]),
        ("within(lat, lon, 30.2, 120.1, 6000 m)", [0, 1]),
        ("within(lat, lon, 30.2, 120.1, 30000 km)", [0, 1]),
        (col("year").between(1990, 2001) & ~col("sold"), [1]),
        (col("sold"), [0, 3]),
        ({"op": "is_null", "column": "year"}, [2]),
        ([{"op": "compare", "column": "year", "operator": ">", "value": 1990}, "sold", col("lat") < 0], [3]),
    ],
)
def test_rows_that_satisfy_the_filter(where, expected):
    assert matching_rows(ITEMS, where).nonzero()[0].tolist() == expected


@pytest.mark.parametrize(
    ("text", "message", "caret"),
    [
        ("alphabet = 'x'", "one of the columns script, year.*got alphabet", 0),
        ("scirpt = 'Greek'", "mean 'script'", 0),
        ("script > 'Greek'", "text that is neither, such as 'Greek'", 9),
        ("mixed > 2024-03-01", "must all name a zone.*such as '2024-03-01T12:00Z'", 8),
        ("soon > 2024-03-01", "text that is neither, such as 'unknown'", 7),
        ("within(spot, 1, 2, 3 km)", "holds text, such as '30.2;120.1'", 7),
        ("day >= 2024-02-30", "holds times, so the value must be one", 7),
        ("day >= 'soon'", "holds times", 7),
        ("day >= 3", "holds times", 7),
        ("day >= 2024-03-01T12:00Z", "must have none; got .* Write 2024-03-01T12:00\n", 7),
        ("day >= '2024-03-01T12:00+02:00'", "must have none; got .* Write 2024-03-01T12:00\n", 7),
        ("unsaid > 3", "unsaid is missing in every item. .* unsaid is null", 9),
        ("unsaid between 'a' and 'b'", "unsaid is missing in every item", 15),
        ("sold < true", "holds true or false. Write sold", 7),
        ("sold = 1", "holds true or false; got 1", 7),
        ("sold = 'yes'", "holds true or false; got 'yes'", 7),
        ("year = 'soon'", "must be a number; got 'soon'", 7),
        ("year = '1990'", "without quotes: 1990", 7),
        ("year >= true", "must be a number; got true", 8),
        ("year = 2001.5", "whole numbers; got 2001.5", 7),
        (f"year = {10**30}", "64 bits", 7),
        (f"year > {10**30}", "64 bits", 7),
        ("year and sold", "year holds whole numbers. Compare it", 0),
        ("sold and script", "script holds text. Compare it", 9),
        ("suffix = 0123", "holds text; got 0123. Write it in single quotes: '0123'", 9),
        ("suffix in ('1234', 12)", "holds text; got 12", 19),
        ("script = ''", "Write script is null", 9),
        ("year between 2001 and 1990", "lower bound first; got 2001 and 1990", 13),
        ("day between 2024-03-02 and 2024-03-01", "lower bound first", 12),
        ("within(script, 1, 2, 3 km)", "locations.*script holds text, such as 'Greek'", 7),
        ("within(lat, 1, 2, 3 km)", r"two columns of numbers, within\(lat, lon", 7),
        ("within(lat, script, 1, 2, 3 km)", "script holds text", 12),
        ("within(lon, lat, 1, 2, 3 km)", "latitudes must hold.*lon holds 120.1. The latitude comes first", 7),
        ("within(lat, east, 1, 2, 3 km)", "longitudes must hold.*east holds 190", 12),
        ("within(lat, nowhere, 1, 2, 3 km)", "got nowhere", 12),
    ],
)
def test_a_filter_that_does_not_fit_the_columns_is_refused_with_a_caret_at_the_mistake(text, message, caret):
    with pytest.raises(InvalidFilter, match=message) as refused:
        matching_rows(ITEMS, text)
    assert str(refused.value).splitlines()[1:] == [f"  {text}", " " * (caret + 2) + "^"]
    with pytest.raises(InvalidFilter):
        matching_rows(ITEMS, parse(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("script = 'Greeek'", "no item has script = 'Greeek'.*'Greek', 'Latin', 'Old Norse'.*mean 'Greek'"),
        ("script = 'greek'", "mean 'Greek'"),
        ("script in ('Greek', 'Latn')", "no item has script = 'Latn'.*mean 'Latin'"),
        ("not script != 'Greeek'", "no item has script = 'Greeek'"),
        ("sold or not (sold and script != 'Greeek')", "no item has script = 'Greeek'"),
        ("label = 'd'", "no item has label = 'd'"),
        ("year = 2000", r"no item has year = 2000. There are 1990, 2001, 2010\."),
        ("weight in (0.5, 1.4)", "no item has weight = 1.4. There are -3.0, 0.5, 1.5"),
    ],
)
def test_a_value_that_no_item_has_is_refused_with_the_nearest(text, message):
    with pytest.raises(InvalidFilter, match=message):
        matching_rows(ITEMS, text)
    assert matching_rows(ITEMS, text, refuse_absent=False).dtype == bool


@pytest.mark.parametrize("text", ["script != 'Greeek'", "script not in ('Greeek')", "not script = 'Greeek'"])
def test_what_excludes_nothing_is_told_of(text, caplog):
    assert matching_rows(ITEMS, text).all()
    assert "Did you mean 'Greek'" in caplog.text
    assert "excludes nothing" in caplog.text


def test_a_filter_of_several_points_into_the_text_that_is_wrong():
    with pytest.raises(InvalidFilter) as refused:
        matching_rows(ITEMS, ["sold", "year = 'x'", "script"])
    assert str(refused.value).splitlines()[1:] == ["  year = 'x'", "         ^"]


@pytest.mark.parametrize("where", [3, [None], [["sold"]], b"sold", {"op": "like"}, {"sold": True}])
def test_what_is_no_filter_is_refused(where):
    with pytest.raises(InvalidFilter, match="must be"):
        matching_rows(ITEMS, where)


def test_texts_of_more_than_two_gibibytes_are_texts_too():
    large = pa.table({name: ITEMS[name].cast(pa.large_string()) for name in ("script", "day", "place")})
    for where in ("script = 'Greek'", "script is null", "day >= 2024-03-01", "within(place, 30, 120, 99 km)"):
        assert matching_rows(large, where).tolist() == matching_rows(ITEMS, where).tolist()


def test_truth_values_that_no_item_has_match_nothing():
    assert not matching_rows(pa.table({"sold": [True, None]}), "sold = false").any()


def test_filters_hold_over_several_chunks():
    chunked = pa.concat_tables([ITEMS, ITEMS.slice(1, 2), ITEMS.slice(0, 0)])
    assert matching_rows(chunked, "script = 'Latin'").nonzero()[0].tolist() == [1, 4]


def test_whole_numbers_beyond_two_to_the_53_are_compared_exactly():
    items = pa.table({"code": pa.array([2**53, 2**53 + 1])})
    assert matching_rows(items, f"code = {2**53 + 1}").tolist() == [False, True]
    assert matching_rows(items, f"code > {2**53}").tolist() == [False, True]


def test_zero_has_one_sign():
    items = pa.table({"number": [0.0, -0.0, None, 1.0]})
    assert matching_rows(items, "number = 0").tolist() == [True, True, False, False]
    assert matching_rows(items, "number in (-0.0, 7)", refuse_absent=False).tolist() == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(InvalidFilter, match=r"There are -?0\.0, 1\.0\. *$"):
        matching_rows(items, parse("number = 3"))


def test_no_items_match_no_filter():
    empty = pa.table({"script": pa.array([], pa.string()), "year": pa.array([], pa.int64())})
    assert matching_rows(empty, "script is null or year > 3").shape == (0,)
    with pytest.raises(InvalidFilter, match="There are none"):
        matching_rows(empty, "script = 'Greek'")

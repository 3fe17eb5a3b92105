"""Indexes of attributes find the rows, and the count, that comparing whole columns finds."""

import threading
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.errors import InvalidFilter
from dml.retrieval.attributes import AttributeIndexes, open_attributes, write_attributes
from dml.retrieval.attributes.bits import bitmap_of, count_of, rows_of
from dml.retrieval.filters import Within, check, matching_rows
from tests.retrieval.filters.trees import filters_of, latitudes, longitudes, rows_of_items, table

examples = settings(max_examples=100, deadline=None, derandomize=True, database=None)
MANY = 4_000


def indexed(folder, items) -> AttributeIndexes:
    return open_attributes(write_attributes(folder, items), items)


def assert_same_rows(indexes, items, where):
    filter = check(where, indexes, refuse_absent=False)
    expected = matching_rows(items, where, refuse_absent=False)
    matches = indexes.matches(filter)
    assert matches.count == expected.sum()
    assert matches.rows().tolist() == np.flatnonzero(expected).tolist()
    assert matches.bitmap().tolist() == np.packbits(expected, bitorder="little").tolist()


@examples
@given(case=rows_of_items.flatmap(lambda rows: st.tuples(st.just(rows), filters_of(rows))))
def test_the_rows_of_few_values_are_those_of_comparing_whole_columns(case, tmp_path_factory):
    rows, filter = case
    items = table(rows)
    assert_same_rows(indexed(tmp_path_factory.mktemp("few"), items), items, filter)


def many_values() -> pa.Table:
    """Items with more values a column than get bitmaps; an eighth of each column is missing."""
    rng = np.random.default_rng(7)
    start = datetime(1970, 1, 1)
    columns = {
        "text": [f"name {n}" for n in rng.integers(0, 500, MANY)],
        "number": rng.normal(size=MANY).round(2).tolist(),
        "whole": (2**53 + rng.integers(-300, 300, MANY)).tolist(),
        "truth": (rng.random(MANY) < 0.3).tolist(),
        "moment": [(start + timedelta(hours=int(n))).isoformat() for n in rng.integers(0, 48 * 30, MANY)],
        "place": [f"{a:.3f},{b:.3f}" for a, b in zip(*random_places(rng), strict=True)],
    }
    columns["lat"], columns["lon"] = (degrees.tolist() for degrees in random_places(rng))
    for name, values in columns.items():
        blank = "" if name in ("text", "moment", "place") else float("nan") if name == "number" else None
        for row in rng.choice(MANY, MANY // 8, replace=False):
            values[row] = None if row % 2 else blank
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return table(rows)


def random_places(rng):
    """Around one place, over the whole Earth, and at its edges."""
    near = rng.random(MANY) < 0.5
    latitude = np.where(near, 30 + rng.normal(size=MANY), rng.uniform(-90, 90, MANY))
    longitude = np.where(near, 120 + rng.normal(size=MANY), rng.uniform(-180, 180, MANY))
    latitude[:20], longitude[20:40] = rng.choice([-90, 90], 20), rng.choice([-180, 180], 20)
    return latitude, longitude


@pytest.fixture(scope="module")
def items():
    return many_values()


@pytest.fixture(scope="module")
def indexes(tmp_path_factory, items):
    return indexed(tmp_path_factory.mktemp("many"), items)


@examples
@given(data=st.data())
def test_the_rows_of_many_values_are_those_of_comparing_whole_columns(data, items, indexes):
    rows = items.slice(data.draw(st.integers(0, MANY - 20)), 20).to_pylist()
    assert_same_rows(indexes, items, data.draw(filters_of(rows)))


@pytest.mark.parametrize(
    "where",
    [
        "number > -0.5",
        "number between -1.25 and 1.25",
        "number <= 0 and whole >= 9007199254740993",
        "whole > 9007199254740992",
        "whole between 9007199254740900 and 9007199254741000",
        "moment >= 1970-01-20",
        "moment between 1970-01-05 and 1970-02-20T12:00",
        "text = 'name 7' and number > 0 and whole < 9007199254740992",
        "text in ('name 7', 'name 8', 'nobody') or truth",
        "not (number > 0 or moment < 1970-01-20)",
        "text != 'name 7' and number is not null",
        "truth and moment > 1970-02-25 and within(place, 30, 120, 200 km)",
        "number > 100",
        "number < 100 and whole is null",
        "text is null or number is null",
    ],
)
def test_ranges_and_their_combinations(indexes, items, where):
    assert_same_rows(indexes, items, where)


@examples
@given(
    column=st.sampled_from(["place", ("lat", "lon")]),
    latitude=latitudes | st.floats(-90, 90),
    longitude=longitudes | st.floats(-180, 180),
    radius_km=st.sampled_from([0.5, 30.0, 300.0, 3_000.0, 9_990.0, 10_020.0, 20_100.0]),
)
def test_locations_at_the_poles_and_across_the_antimeridian(
    indexes, items, column, latitude, longitude, radius_km
):
    where = Within(column=column, latitude=latitude, longitude=longitude, radius_km=radius_km)
    assert_same_rows(indexes, items, where)


def test_times_with_zones_compare_in_utc(tmp_path):
    texts = [f"2024-03-01T{hour:02d}:00+{hour % 3:02d}:00" for hour in range(24)] * 5
    items = pa.table({"seen": [*texts, None, ""]})
    indexes = indexed(tmp_path, items)
    for where in (
        "seen >= 2024-03-01T12:00+01:00",
        "seen < 2024-03-01T05:30Z",
        "seen = '2024-03-01T05:00+02:00'",
    ):
        assert_same_rows(indexes, items, where)


def test_columns_that_are_not_indexed_are_compared_whole(tmp_path):
    items = pa.table(
        {"sha256": ["a", "b", "b"], "position": [0, 1, 2], "tags": [["x"], None, ["y"]], "age": [1, None, 3]}
    )
    indexes = indexed(tmp_path, items)
    assert list(indexes) == ["sha256", "position", "tags", "age"]
    for where in ("sha256 = 'b' and age is null", "position > 0", "tags is null or age = 1"):
        assert_same_rows(indexes, items, where)


@pytest.mark.parametrize(
    "where",
    [
        "nobody = 1",
        "text = 'nobody'",
        "number = 77.7",
        "whole in (3)",
        "truth > 1",
        "text > 'a'",
        "moment > 'soon'",
        "within(text, 1, 2, 3 km)",
        "within(number, whole, 1, 2, 3 km)",
    ],
)
def test_a_filter_is_refused_as_by_the_items_themselves(indexes, items, where):
    with pytest.raises(InvalidFilter) as theirs:
        matching_rows(items, where)
    with pytest.raises(InvalidFilter) as ours:
        check(where, indexes)
    assert str(ours.value).split("got")[0][:60] == str(theirs.value).split("got")[0][:60]


def test_equal_filters_are_evaluated_once_and_the_oldest_are_forgotten(items, tmp_path):
    paths = write_attributes(tmp_path, items)
    opened = open_attributes(paths, items)
    filter = check("number > 0", opened)
    assert opened.matches(filter) is opened.matches(check("number > 0.0", opened))
    small = open_attributes(paths, items, cache_bytes=3_000)
    first = small.matches(filter)
    first.bitmap()
    for bound in range(8):
        small.matches(check(f"number > 0.{bound}1", small)).bitmap()
    assert small.matches(filter) is not first


def test_threads_that_share_indexes_find_the_same(items, tmp_path):
    indexes = indexed(tmp_path, items)
    wheres = [f"number > {bound / 10} and truth or text = 'name {bound}'" for bound in range(20)]
    expected = [matching_rows(items, where, refuse_absent=False).sum() for where in wheres]
    wrong = []

    def search():
        for where, count in zip(wheres, expected, strict=True):
            matches = indexes.matches(check(where, indexes, refuse_absent=False))
            if not matches.count == count == len(matches.rows()) == count_of(matches.bitmap()):
                wrong.append(where)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@examples
@given(st.integers(1, 3_000), st.data())
def test_bitmaps_have_the_rows_that_they_were_made_of(num_rows, data):
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, num_rows - 1), max_size=40))), dtype=np.int64)
    bitmap = bitmap_of(rows, num_rows)
    mask = np.zeros(num_rows, np.bool_)
    mask[rows] = True
    assert bitmap.tolist() == np.packbits(mask, bitorder="little").tolist()
    assert rows_of(bitmap, num_rows).tolist() == rows.tolist()
    assert count_of(bitmap) == len(rows)


def test_a_file_is_read_by_plain_pyarrow(tmp_path, items):
    path = write_attributes(tmp_path, items)[0]
    file = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert b'"column": "text"' in file.schema.metadata[b"dml"]
    values, offsets, rows = (file[name][0].as_py() for name in ("values", "offsets", "rows"))
    number = values.index("name 7")
    of_value = rows[offsets[number] : offsets[number + 1]]
    assert {items["text"][row].as_py() for row in of_value} == {"name 7"}

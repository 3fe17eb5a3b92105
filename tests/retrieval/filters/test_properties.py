"""Random filters of random items: beside a loop over the rows, and through text and JSON and back."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.errors import InvalidFilter
from dml.retrieval.filters import from_json, json_schema, matching_rows, parse
from dml.retrieval.filters.locations import distances_km
from tests.retrieval.filters.trees import (
    filters_of,
    haversine_km,
    is_satisfied,
    latitudes,
    longitudes,
    rows_of_items,
    table,
)

examples = settings(max_examples=150, deadline=None, derandomize=True, database=None)
few = settings(examples, max_examples=60)
rows_and_filters = rows_of_items.flatmap(lambda rows: st.tuples(st.just(rows), filters_of(rows)))


def refusal(act):
    """What an act returns, and the error that it raises instead."""
    try:
        return act(), None
    except InvalidFilter as refused:
        return None, refused


@few
@given(rows_and_filters)
def test_the_rows_of_a_filter_are_those_that_a_loop_finds(case):
    rows, filter = case
    expected = [is_satisfied(row, filter) for row in rows]
    assert matching_rows(table(rows), filter, refuse_absent=False).tolist() == expected
    assert matching_rows(table(rows), str(filter), refuse_absent=False).tolist() == expected
    assert matching_rows(table(rows), ~filter, refuse_absent=False).tolist() == [
        not each for each in expected
    ]


@examples
@given(filters_of([]))
def test_a_filter_is_the_same_through_text_and_through_json(filter):
    assert parse(str(filter)) == filter
    assert str(parse(str(filter))) == str(filter)
    assert from_json(json.loads(filter.model_dump_json())) == filter


@few
@given(rows_and_filters)
def test_a_filter_that_is_refused_names_the_first_value_that_no_item_has(case):
    rows, filter = case
    found, refused = refusal(lambda: matching_rows(table(rows), filter).tolist())
    if refused is None:
        assert found == matching_rows(table(rows), filter, refuse_absent=False).tolist()
    else:
        assert refused.message.startswith("A value must be one that an item has; no item has ")


WORDS = ["a", "ü", "and", "OR", "not", "between", "in", "is", "null", "true", "within(", "1", "-2.5e3", "km"]
OTHER_WORDS = ["2026-01-01", "'x'", '"b c"', "--", "/*", "'; drop table items; --", "\0", "\u202e", "\u00a0"]
SOUP = st.sampled_from([*WORDS, *OTHER_WORDS, *"()=<>!,'\"`|&;.-*"])


@examples
@given(st.lists(SOUP, max_size=12).map(" ".join) | st.lists(SOUP, max_size=8).map("".join) | st.text())
def test_any_text_is_a_filter_or_refused_with_a_caret_below_it(text):
    filter, refused = refusal(lambda: parse(text))
    if refused is None:
        assert parse(str(filter)) == filter
    else:
        *_, shown, caret = str(refused).split("\n")
        assert caret.strip() == "^"
        assert "\n" not in refused.message
        assert shown.isprintable() or not text.isprintable()


@given(latitudes, longitudes, latitudes, longitudes)
def test_a_distance_is_that_of_the_textbook_and_symmetric(latitude, longitude, to_latitude, to_longitude):
    def distance(*place):
        return distances_km(np.array([place[0]]), np.array([place[1]]), *place[2:])[0]

    measured = distance(latitude, longitude, to_latitude, to_longitude)
    assert measured == pytest.approx(haversine_km(latitude, longitude, to_latitude, to_longitude), abs=1e-3)
    assert measured == pytest.approx(distance(to_latitude, to_longitude, latitude, longitude), abs=1e-9)


@pytest.mark.parametrize(
    ("place", "other", "kilometres"),
    [
        ((0, 179.9), (0, -179.9), 22.239),
        ((89.9, 0), (89.9, 180), 22.239),
        ((90, 0), (90, 77), 0),
        ((-90, 12), (90, 100), math.pi * 6371.0088),
        ((0, 180), (0, -180), 0),
        ((48.8566, 2.3522), (40.7128, -74.006), 5837.2),
        ((30.2, 120.1), (30.2, 120.100001), 0.0000961),
    ],
)
def test_distances_across_the_antimeridian_and_at_the_poles(place, other, kilometres):
    measured = distances_km(np.array([place[0]]), np.array([place[1]]), *other)
    assert measured[0] == pytest.approx(kilometres, rel=1e-4, abs=1e-9)


def test_the_json_schema_accepts_what_from_json_does():
    import jsonschema

    tree = json.loads(parse("a in (1, 'x') and not (b or within(c, d, 1, 2, 3 km))").model_dump_json())
    jsonschema.validate(tree, json_schema())
    for wrong in ({"op": "like"}, {"op": "is_null", "column": ""}, {"op": "in", "column": "a", "values": []}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, json_schema())

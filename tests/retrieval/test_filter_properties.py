"""Conditions on random tables, beside a loop over the rows in plain Python."""

import operator
import re
from datetime import datetime
from typing import Any

import pyarrow as pa
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dml.retrieval.conditions import matching_rows

examples = settings(max_examples=80, deadline=None, derandomize=True, database=None)
ORDERED = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
Row = dict[str, Any]

# Few different ones, so that rows agree; with all that a condition's own grammar uses.
texts = st.text(st.sampled_from("ab=<>!|\\,;'\" ü"), min_size=1, max_size=4).filter(lambda t: t == t.strip())
numbers = st.sampled_from([-1e300, -2.5, -1.0, -0.0, 0.0, 0.1, 1.0, 3.0, 1e-300])
wholes = st.sampled_from([-(2**63), -3, 0, 1, 7, 2**53, 2**53 + 1, 2**63 - 1])
moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1))
tables = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.just("") | texts,
            "number": st.none() | st.just(float("nan")) | numbers,
            "whole": st.none() | wholes,
            "truth": st.none() | st.booleans(),
            "moment": st.none() | st.just("") | moments.map(datetime.isoformat),
        }
    ),
    min_size=1,
    max_size=12,
)
TYPES = {
    "text": pa.string(),
    "number": pa.float64(),
    "whole": pa.int64(),
    "truth": pa.bool_(),
    "moment": pa.string(),
}


def table(rows: list[Row]) -> pa.Table:
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()}
    return pa.concat_tables([pa.table(columns).slice(0, 1), pa.table(columns).slice(1)])  # in two chunks


def is_missing(value: Any) -> bool:
    return value is None or value == "" or value != value


def written(values: list[Any]) -> str:
    """As a condition has them: a bar in a value is escaped, and so are backslashes before any bar."""
    shown = [re.sub(r"(\\*)\|", r"\1\1\\|", str(value)) for value in values]
    return "|".join([re.sub(r"(\\+)$", r"\1\1", value) for value in shown[:-1]] + shown[-1:])


def rows_of(rows: list[Row], *conditions: str) -> list[bool]:
    return matching_rows(table(rows), conditions).tolist()


@examples
@given(tables, st.sampled_from(list(TYPES)), st.data())
def test_equal_and_unequal_find_what_a_loop_over_the_rows_does(rows, name, data):
    present = [row[name] for row in rows if not is_missing(row[name])]
    wanted = data.draw(st.lists(st.sampled_from(present), max_size=3)) if present else []
    with_missing = data.draw(st.booleans()) or not wanted
    text = written([*wanted, *[""] * with_missing])
    expected = [with_missing if is_missing(row[name]) else row[name] in wanted for row in rows]
    assert rows_of(rows, f"{name}={text}") == expected
    assert rows_of(rows, f"{name} != {text} ") == [not found for found in expected]


@examples
@given(tables, st.sampled_from(["number", "whole"]), numbers | wholes, st.sampled_from(list(ORDERED)))
def test_numbers_compare_as_pythons_do(rows, name, bound, sign):
    assume(name == "number" or abs(bound) <= 2**63)  # beyond it is refused, as what fits no whole number
    compare = ORDERED[sign]
    expected = [not is_missing(row[name]) and compare(row[name], bound) for row in rows]
    assert rows_of(rows, f"{name}{sign}{bound}") == expected


@examples
@given(tables, moments, st.sampled_from(list(ORDERED)))
def test_dates_compare_as_pythons_do(rows, bound, sign):
    compare = ORDERED[sign]
    expected = [
        not is_missing(row["moment"]) and compare(datetime.fromisoformat(row["moment"]), bound)
        for row in rows
    ]
    assert rows_of(rows, f"moment {sign} {bound.isoformat()}") == expected


@examples
@given(tables, st.data())
def test_several_conditions_are_their_intersection_and_an_order_splits_what_is_not_missing(rows, data):
    sign, bound = data.draw(st.sampled_from(list(ORDERED))), data.draw(numbers)
    conditions = ["truth!=", f"number{sign}{bound}", "text="]
    each = [rows_of(rows, condition) for condition in conditions]
    assert rows_of(rows, *conditions) == [all(found) for found in zip(*each, strict=True)]
    opposite = {">=": "<", "<=": ">", ">": "<=", "<": ">="}[sign]
    either = [a or b for a, b in zip(each[1], rows_of(rows, f"number{opposite}{bound}"), strict=True)]
    assert either == rows_of(rows, "number!=")

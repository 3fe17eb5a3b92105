"""Any filter of columns of any type: followed alike by indexes and by comparing whole columns, or refused."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.errors import InvalidFilter
from dml.retrieval.attributes import open_attributes, write_attributes
from dml.retrieval.filters import And, Between, Compare, In, IsNull, Not, Or, Within, check, matching_rows

NAN, INF = float("nan"), float("inf")
ITEMS = pa.table(
    {
        "text": ["a", None, "", "b"],
        "large text": pa.array(["a", None, "", "b"], pa.large_string()),
        "and": [True, False, None, True],
        "integer": [1, None, 2**63 - 1, -(2**63)],
        "int32": pa.array([29, 30, None, -30], pa.int32()),
        "number": [1.5, None, NAN, INF],
        "float32": pa.array([1.5, None, 0.1, -0.0], pa.float32()),
        "float16": pa.array([1.5, None, 0.5, 2.0], pa.float16()),
        "day": ["2024-01-01", None, "", "2024-02-01T12:00"],
        "zoned": ["2024-01-01T00:00Z", None, "", "2024-02-01T12:00+01:00"],
        "nanosecond": ["2024-01-01 00:00:00.000000001", "2024-01-01", None, ""],
        "place": ["1,2", " 90 , -180 ", None, ""],
        "no place": ["91,2", "1,2", None, ""],
        "latitude": [1, 90, None, -90],
        "longitude": [180.0, -180.0, NAN, None],
        "missing": pa.array([None] * 4, pa.string()),
        "nothing": pa.nulls(4),
        "list": [[1], None, [], [2]],
        'quoted "`': pa.array([b"a", b"b", None, b""]),
    }
)
columns = st.sampled_from([*ITEMS.column_names, "unknown"])
NUMBERS = [0, 1, -1, 1.5, -0.0, 2**63, 2**63 - 1, -(2**63), 2**53 + 1, 1e300]
TIMES = ["2024-01-01", "2024-02-30", "2024-01-01T00:00Z", "0001-01-01", "2024-01-01T00:00:00.123456789"]
values = st.sampled_from([*NUMBERS, *TIMES, True, False, "", "a", "1", "1,2", "\0"])
leaves = (
    st.builds(
        Compare, column=columns, operator=st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), value=values
    )
    | st.builds(Between, column=columns, low=values, high=values)
    | st.builds(In, column=columns, values=st.lists(values, min_size=1, max_size=3))
    | st.builds(IsNull, column=columns)
    | st.builds(
        Within,
        column=columns | st.just(("latitude", "longitude")) | st.tuples(columns, columns),
        latitude=st.floats(-90, 90),
        longitude=st.floats(-180, 180),
        radius_km=st.sampled_from([1e-9, 1.0, 1e4, 1e9]),
    )
)
pairs = st.tuples(leaves, leaves)
filters = (
    leaves | st.builds(Not, filter=leaves) | st.builds(And, filters=pairs) | st.builds(Or, filters=pairs)
)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("types")
    return open_attributes(write_attributes(folder, ITEMS), ITEMS)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(filter=filters, as_text=st.booleans(), refuse_absent=st.booleans())
def test_a_filter_is_followed_alike_or_refused(indexes, filter, as_text, refuse_absent):
    where = str(filter) if as_text else filter
    try:
        checked = check(where, indexes, refuse_absent=refuse_absent)
    except InvalidFilter:
        with pytest.raises(InvalidFilter):
            matching_rows(ITEMS, where, refuse_absent=refuse_absent)
        return
    expected = matching_rows(ITEMS, where, refuse_absent=refuse_absent)
    matches = indexes.matches(checked)
    assert (matches.count, matches.rows().tolist()) == (expected.sum(), expected.nonzero()[0].tolist())

"""The language of filters: texts and their trees, and errors that point at the mistake."""

import pytest

from dml.errors import InvalidFilter
from dml.retrieval.filters import And, Between, Compare, In, IsNull, Not, Or, Within, parse

A = Compare(column="a", operator="=", value=1)
B = Compare(column="b", operator="=", value=True)
C = IsNull(column="c")


@pytest.mark.parametrize(
    ("text", "filter"),
    [
        ("a = 1", A),
        ("b", B),
        ("b = TRUE", B),
        ("c is null", C),
        ("c IS NOT NULL", Not(filter=C)),
        ("a = 1 and b or c is null", Or(filters=(And(filters=(A, B)), C))),
        ("a = 1 AND (b OR c is null)", And(filters=(A, Or(filters=(B, C))))),
        ("(a = 1 and b) and c is null", And(filters=(And(filters=(A, B)), C))),
        ("not a = 1 and not not b", And(filters=(Not(filter=A), Not(filter=Not(filter=B))))),
        ("((((a=1))))", A),
        ("a <> 1", Compare(column="a", operator="!=", value=1)),
        ("a>-2.5e3", Compare(column="a", operator=">", value=-2500.0)),
        ("a between 1 and 2 and b", And(filters=(Between(column="a", low=1, high=2), B))),
        ("a not between 1 and 2", Not(filter=Between(column="a", low=1, high=2))),
        ("a in (1, 'x', true)", In(column="a", values=(1, "x", True))),
        ("a not in ('O''Hara')", Not(filter=In(column="a", values=("O'Hara",)))),
        ("a = ''", Compare(column="a", operator="=", value="")),
        (
            "seen >= 2026-01-01T12:30:05Z",
            Compare(column="seen", operator=">=", value="2026-01-01T12:30:05Z"),
        ),
        ('"unit ""price""" > 1', Compare(column='unit "price"', operator=">", value=1)),
        ("`in` = 1", Compare(column="in", operator="=", value=1)),
        ("größe = 1", Compare(column="größe", operator="=", value=1)),
        ("orange", Compare(column="orange", operator="=", value=True)),
        ("x = ' and \"y\"\n\0'", Compare(column="x", operator="=", value=' and "y"\n\0')),
        (
            "within(place, 30.2, -120, 500 m)",
            Within(column="place", latitude=30.2, longitude=-120, radius_km=0.5),
        ),
        (
            "WITHIN(lat, lon, 1, 2, 5km)",
            Within(column=("lat", "lon"), latitude=1, longitude=2, radius_km=5),
        ),
    ],
)
def test_a_text_reads_as_its_tree_and_the_tree_prints_as_a_text_of_the_same_tree(text, filter):
    assert parse(text) == filter
    assert parse(str(filter)) == filter
    assert type(filter).model_validate_json(filter.model_dump_json()) == filter


@pytest.mark.parametrize(
    ("text", "message", "caret"),
    [
        ("age > ", "a number.*got the end", 5),
        ("age == 3", "Write: age = 3", 5),
        ("(a = 1", r"have 'and', 'or' or '\)'", 6),
        ("a = 1)", r"got '\)'", 5),
        ("a in (1, 2", r"'\)' or ','", 10),
        ("a && b", "Write and", 2),
        ("a = 'x", "ends with a single quote", 4),
        ('a = "x"', "single quotes: 'x'", 4),
        ("a = Old Norse and b", "single quotes: 'Old Norse'", 4),
        ("and = 3", "a column", 0),
        ("within(a, 1, 2, 3)", "km or m", 17),
        ("within(a, 91, 2, 3 km)", "from -90 to 90", 10),
        ("within(a, 1, 2, 0 km)", "above 0", 16),
        ("a = 1e999", "finite", 4),
        ("not " * 65 + "a", "64 deep", 39),
        ("(" * 65 + "a" + ")" * 65, "64 deep", 39),
        ("a = 1; drop table items", "got ';'", 5),
        ("a != NULL", "a is null, or a is not null", 5),
        ("a in (1, none)", "a is null, or a is not null", 9),
        ("20 < a", "The column comes first", 0),
        ("b and 'x' = a", "The column comes first", 6),
        ("a is true", "Write = true", 5),
        ("a like 'x%'", "compared whole", 2),
        ("a = 1, b = 2", "Write and", 5),
        ("a = 1 || b", "Write or", 6),
        ("!a", "Write not", 0),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_with_a_caret_at_the_mistake(text, message, caret):
    with pytest.raises(InvalidFilter, match=message) as refused:
        parse(text)
    assert str(refused.value).splitlines()[-1] == " " * (caret + 2) + "^"


@pytest.mark.parametrize("text", ["(" * 20_000 + "a" + ")" * 20_000, "a" * 9_000, "a = '\udcff'"])
def test_a_text_beyond_the_limits_is_refused(text):
    with pytest.raises(InvalidFilter, match=r"at most 8192 bytes|UTF-8"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("script=Greek|Latin", "script in ('Greek', 'Latin')"),
        ("script!=Greek|Latin", "script not in ('Greek', 'Latin')"),
        ("script = Greek", "script = 'Greek'"),
        ("script=Greek|", "script = 'Greek' or script is null"),
        ("script!=Greek|", "script != 'Greek' and script is not null"),
        ("year=1990|2001", "year in (1990, 2001)"),
        ("unit price>=2", '"unit price" >= 2'),
        ("price=", "price is null"),
        ("price!=", "price is not null"),
    ],
)
def test_a_condition_without_quotes_is_refused_with_how_it_is_written(text, written):
    with pytest.raises(InvalidFilter) as refused:
        parse(text)
    assert refused.value.message.endswith(f" Write: {written}")
    assert str(parse(written)) == written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("age > ٣", "age > 3"),
        ("age in (１, ２)", "age in (1, 2)"),
        ("w > 1٫5", "w > 1.5"),
        ("age > −1", "age > -1"),
        ("age ≥ 1 and b", "age >= 1 and b"),
        ("(age ＞ 1）", "(age > 1)"),
        ("label = ‘x’", "label = 'x'"),
        ("label = 'x’", "label = 'x'"),
        ("label = “O’Hara” and b = 'ٰ٣'", "label = 'O’Hara' and b = 'ٰ٣'"),
        ("“unit price” > 1", '"unit price" > 1'),
        ("seen > ٢٠٢٦-٠١-٠١", "seen > 2026-01-01"),
        ("seen > 2026-01-01Z", "seen > 2026-01-01T00:00Z"),
        ("seen > 2026-01-01 12:30 and b", "seen > 2026-01-01T12:30 and b"),
        ("age > 1_000", "age > 1000"),
    ],
)
def test_what_a_keyboard_does_not_have_is_refused_with_how_it_is_written(text, written):
    with pytest.raises(InvalidFilter) as refused:
        parse(text)
    assert str(refused.value).splitlines()[0].endswith(f" Write: {written}")
    parse(written)


def test_a_decimal_comma_is_not_taken_for_and():
    with pytest.raises(InvalidFilter, match=r"decimal point is a dot: 1\.5"):
        parse("age > 1,5")


@pytest.mark.parametrize("text", ["age > 0b1٣ x", "‘‘‘ = ٣", "a = “x” “y”", "٣٣٣", "a = ’"])
def test_only_a_filter_that_can_be_read_is_suggested(text):
    with pytest.raises(InvalidFilter) as refused:
        parse(text)
    _, _, written = str(refused.value).splitlines()[0].partition(" Write: ")
    if written:
        parse(written)

"""What every engine must do alike: filters, answers, counts and refusals, compared with plain loops.

A test of an engine subclasses `EngineConformance` beside two fixtures: `engine`, which holds nothing, and
`loaded`, which holds the table of `ITEMS`.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dml.embedding.external import import_vectors
from dml.errors import InvalidData, InvalidFilter, InvalidSetting, MissingArtifact
from dml.refs import EmbeddingsRef
from dml.retrieval.engines.engine import Engine
from dml.retrieval.filters.tree import And, Between, Compare, Filter, In, IsNull, Not, Or, Within

ROWS, DIM = 240, 8
NASTY = [
    'double "quoted"',
    "single 'quoted'",
    "back\\slash",
    "ends with a backslash\\",
    '\\" or id != "',
    '"] or id in ["',
    "{brace} {{two}}",
    "$meta",
    "% _ like",
    "new\nline\r\n\ttab",
    "NUL \x00 inside",
    "naïve ünïcödé \U0001f642 中文",
    "line\u2028separator \x7f \x85",
    "null",
    "/* comment */ -- also",
]


def item(row: int) -> dict[str, Any]:
    return {
        "id": f"{NASTY[row % len(NASTY)]} {row}" if row % 6 == 0 else f"item {row}",
        "label": None if row % 11 == 0 else f"class {row % 7}",
        "note": None if row % 4 == 0 else NASTY[row % len(NASTY)],
        "age": None if row % 5 == 0 else row % 60 - 5,
        "big": 2**53 + row % 3 if row % 8 else -(2**63) + 1,
        "weight": None if row % 3 == 0 else row / 7,
        "vip": None if row % 9 == 0 else row % 2 == 0,
        "in": row % 10,
        "größe": float(row % 4),
        "seen": None if row % 7 == 0 else f"2026-01-{row % 28 + 1:02d}" + ("T12:30" if row % 2 else ""),
    }


ITEMS = [item(row) for row in range(ROWS)]
AGES = tuple(sorted({each["age"] for each in ITEMS if each["age"] is not None}))


def make_table(folder: Path, store: str) -> EmbeddingsRef:
    """The items with random vectors, some of them equal, as imported vectors."""
    vectors = np.random.default_rng(7).standard_normal((ROWS, DIM)).astype(np.float32)
    vectors[200:] = vectors[: ROWS - 200]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = {name: [each[name] for each in ITEMS] for name in ITEMS[0]}
    columns["vector"] = list(vectors)
    path = folder / "items.parquet"
    parquet.write_table(pa.table(columns), path)
    return import_vectors(store, "things", path).embeddings


def holds(filter: Filter, item: dict[str, Any]) -> bool:
    """A filter on one item, as a person reads it."""
    match filter:
        case And():
            return all(holds(each, item) for each in filter.filters)
        case Or():
            return any(holds(each, item) for each in filter.filters)
        case Not():
            return not holds(filter.filter, item)
        case IsNull():
            return item[filter.column] is None
        case Compare(operator="!="):
            return item[filter.column] != filter.value
        case Compare():
            value, other = _times(filter.column, filter.operator, item[filter.column], filter.value)
            operators: dict[str, Callable[[Any, Any], bool]] = {
                "=": lambda a, b: a == b,
                "<": lambda a, b: a < b,
                "<=": lambda a, b: a <= b,
                ">": lambda a, b: a > b,
                ">=": lambda a, b: a >= b,
            }
            return value is not None and operators[filter.operator](value, other)
        case Between():
            return all(
                holds(compare(filter.column, operator, limit), item)
                for operator, limit in ((">=", filter.low), ("<=", filter.high))
            )
        case In():
            return item[filter.column] in filter.values
    raise AssertionError(filter)


def _times(column: str, operator: str, *values: Any) -> list[Any]:
    if column != "seen" or operator == "=":
        return list(values)
    return [None if value is None else datetime.fromisoformat(value) for value in values]


def compare(column: str, operator: str, value: object) -> Compare:
    return Compare(column=column, operator=operator, value=value)


def deep(depth: int) -> Filter:
    filter: Filter = compare("age", ">", 10)
    for level in range(depth - 1):
        kind = [And, Or][level % 2]
        filter = kind(filters=(filter, compare("in", "=", level % 10)))
    return filter


FILTERS: dict[str, Filter] = {
    "equal": compare("label", "=", "class 3"),
    "unequal, also where missing": compare("label", "!=", "class 3"),
    "not equal": Not(filter=compare("label", "=", "class 3")),
    "not unequal": Not(filter=compare("label", "!=", "class 3")),
    "less": compare("age", "<", 10),
    "not less, also where missing": Not(filter=compare("age", "<", 10)),
    "at least, a negative number": compare("age", ">=", -3),
    "a fraction": compare("weight", "<=", 10.5),
    "a small fraction": compare("weight", ">", 1e-7),
    "between": Between(column="age", low=5, high=20),
    "not between": Not(filter=Between(column="age", low=5, high=20)),
    "neighbours beyond 2**53": compare("big", "=", 2**53 + 1),
    "the least integer but one": compare("big", "<=", -(2**63) + 1),
    "one of several": In(column="label", values=("class 1", "class 2")),
    "none of several": Not(filter=In(column="label", values=("class 1", "class 2"))),
    "numbers": In(column="age", values=AGES[:3]),
    "missing": IsNull(column="weight"),
    "not missing": Not(filter=IsNull(column="weight")),
    "true": compare("vip", "=", True),
    "not true": Not(filter=compare("vip", "=", True)),
    "not false": compare("vip", "!=", False),
    "a word of the language": compare("in", "=", 4),
    "no ASCII name": compare("größe", "=", 2.0),
    "and": And(filters=(compare("vip", "=", True), compare("age", ">", 10))),
    "or": Or(filters=(compare("age", "<", 0), IsNull(column="label"))),
    "not and": Not(filter=And(filters=(compare("vip", "=", True), compare("age", ">", 10)))),
    "not or": Not(filter=Or(filters=(compare("age", "<", 30), IsNull(column="label")))),
    "not of not within and": And(
        filters=(Not(filter=Not(filter=compare("vip", "=", True))), Not(filter=compare("age", ">", 40)))
    ),
    "by id": compare("id", "=", ITEMS[0]["id"]),
    "none": And(filters=(compare("age", ">", 20), compare("age", "<", 10))),
    "as deep as may be": deep(64),
    "times": compare("seen", ">=", "2026-01-10T12:30"),
    "a day": Between(column="seen", low="2026-01-05", high="2026-01-05T23:59:59"),
    "not before, also where missing": Not(filter=compare("seen", "<", "2026-01-20")),
    "the text of a time": compare("seen", "=", ITEMS[1]["seen"]),
    "many values": In(column="age", values=AGES),
}


class EngineConformance:
    """The suite; `engine` holds nothing, `loaded` the table."""

    @pytest.mark.parametrize("name", FILTERS)
    def test_a_filter_counts_and_finds_what_the_plain_loop_does(self, loaded: Engine, vectors, name):
        filter = FILTERS[name]
        matching = {each["id"] for each in ITEMS if holds(filter, each)}
        assert loaded.count(filter) == len(matching)
        found = loaded.search(vectors[:3], ROWS, filter)
        assert [{answer.id for answer in answers} for answers in found.answers] == [matching] * 3

    @pytest.mark.parametrize("value", NASTY)
    @pytest.mark.parametrize("kind", ["=", "!=", "in", "not in"])
    def test_no_character_of_a_value_ends_it(self, loaded: Engine, value, kind):
        filter = {
            "=": compare("note", "=", value),
            "!=": compare("note", "!=", value),
            "in": In(column="note", values=(value, NASTY[0])),
            "not in": Not(filter=In(column="note", values=(value, NASTY[0]))),
        }[kind]
        assert loaded.count(filter) == sum(holds(filter, each) for each in ITEMS)

    def test_answers_are_the_most_similar_with_their_similarities(self, loaded: Engine, vectors):
        found = loaded.search(vectors[:20], 5)
        similarities = vectors[:20] @ vectors.T
        for answers, expected in zip(found.answers, similarities, strict=True):
            best = np.sort(expected)[::-1][:5]
            np.testing.assert_allclose([answer.similarity for answer in answers], best, atol=1e-5)
            rows = [next(row for row, each in enumerate(ITEMS) if each["id"] == a.id) for a in answers]
            np.testing.assert_allclose(expected[rows], best, atol=1e-5)

    def test_an_answer_has_its_items_columns(self, loaded: Engine, vectors):
        by_id = {each["id"]: each for each in ITEMS}
        (answers,) = loaded.search(vectors[:1], ROWS).answers
        assert len(answers) == ROWS
        for answer in answers:
            expected = by_id[answer.id]
            assert answer.label == expected["label"]
            assert {"id": answer.id, "label": answer.label, **answer.attributes} == expected

    def test_fewer_answers_than_asked_for_say_why(self, loaded: Engine, vectors):
        found = loaded.search(vectors[:2], 10, compare("age", "=", -4))
        matching = sum(each["age"] == -4 for each in ITEMS)
        assert [len(answers) for answers in found.answers] == [matching] * 2
        assert f"{matching} of 10 answers: no more match" in found.plan

    def test_counting_without_a_filter_counts_all(self, loaded: Engine):
        assert loaded.count() == ROWS

    @pytest.mark.parametrize(
        "filter",
        [
            compare("colour", "=", "red"),
            compare("age", "=", "ten"),
            compare("label", "=", 3),
            compare("id == 'x' or id", "!=", "y"),
        ],
        ids=str,
    )
    def test_an_unknown_column_or_another_type_is_refused(self, loaded: Engine, vectors, filter):
        with pytest.raises(InvalidFilter):
            loaded.search(vectors[:1], 3, filter)
        with pytest.raises(InvalidFilter):
            loaded.count(filter)

    @pytest.mark.parametrize(
        ("kind", "filter"),
        [
            ("within", Within(column=("weight", "größe"), latitude=1.0, longitude=2.0, radius_km=3.0)),
            ("least integer", compare("big", ">=", -(2**63))),
        ],
        ids=["within", "least integer"],
    )
    def test_a_filter_is_followed_or_refused_as_the_capabilities_say(
        self, loaded: Engine, vectors, kind, filter
    ):
        if kind in loaded.capabilities.refused_filters:
            with pytest.raises(InvalidSetting, match="exactly"):
                loaded.search(vectors[:1], 3, filter)
            with pytest.raises(InvalidSetting, match="exactly"):
                loaded.count(Not(filter=filter))
        else:
            assert loaded.count(filter) in range(ROWS + 1)

    def test_a_value_that_no_item_has_is_refused_or_finds_nothing(self, loaded: Engine):
        if loaded.capabilities.knows_values:
            with pytest.raises(InvalidFilter, match="no item has label = 'klass 1'"):
                loaded.count(compare("label", "=", "klass 1"))
        else:
            assert loaded.count(compare("label", "=", "klass 1")) == 0

    @pytest.mark.parametrize("k", [0, -1, True, 1.5, "3"])
    def test_a_k_that_is_no_positive_whole_number_is_refused(self, loaded: Engine, vectors, k):
        with pytest.raises(InvalidSetting, match="k must be"):
            loaded.search(vectors[:1], k)

    def test_queries_of_another_dimension_or_length_are_refused(self, loaded: Engine, vectors):
        with pytest.raises(InvalidData, match="must be"):
            loaded.search(vectors[:1, :4], 3)
        with pytest.raises(InvalidData, match="length 1"):
            loaded.search(vectors[:1] * 3, 3)

    def test_no_query_has_no_answers(self, loaded: Engine, vectors):
        assert loaded.search(vectors[:0], 3).answers == []

    def test_loading_the_same_table_again_does_nothing(self, loaded: Engine, table):
        assert loaded.load(table) == ROWS
        assert loaded.count() == ROWS

    def test_creating_what_is_there_is_refused(self, loaded: Engine, table):
        with pytest.raises(InvalidSetting, match="must be new"):
            loaded.create(table)

    def test_what_was_created_is_empty_until_it_is_loaded(self, engine: Engine, table, vectors):
        with pytest.raises(MissingArtifact, match="must be loaded"):
            engine.search(vectors[:1], 3)
        engine.create(table)
        assert engine.count() == 0
        assert engine.search(vectors[:2], 3).answers == [[], []]
        assert engine.load(table) == ROWS
        assert engine.count() == ROWS

    def test_items_change_or_are_refused_as_the_capabilities_say(self, engine: Engine, table, vectors):
        engine.load(table)
        new = {**ITEMS[0], "label": "another", "position": 0}
        changed = pa.Table.from_pylist([new, {**new, "id": NASTY[4]}])
        ids: Sequence[str] = [ITEMS[1]["id"], NASTY[5], "nobody's"]
        if engine.capabilities.upsert:
            engine.upsert(changed, -vectors[:2])
            assert engine.count() == ROWS + 1
            assert engine.count(compare("label", "=", "another")) == 2
            assert engine.search(-vectors[:1], 1).answers[0][0].id == new["id"]
        else:
            with pytest.raises(InvalidSetting, match="must be able"):
                engine.upsert(changed, -vectors[:2])
        before = engine.count()
        if engine.capabilities.delete:
            engine.delete(ids)
            assert engine.count() == before - 1, "no id is an expression that removes others"
            assert engine.count(compare("id", "=", ids[0])) == 0
        else:
            with pytest.raises(InvalidSetting, match="must be able"):
                engine.delete(ids)

"""A live index answers as an index that was built of its live items, whatever was enrolled and forgotten."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dml.errors import InvalidFilter, MissingArtifact
from dml.retrieval.filters import matching_rows
from dml.retrieval.gallery import Gallery
from dml.retrieval.gallery.delta import Delta
from dml.retrieval.gallery.fold import LOG_FILE, folder_of
from dml.retrieval.identities import search_identities
from dml.retrieval.rerank import reranked_search
from dml.retrieval.shards import open_index
from dml.retrieval.ties import first_of_equals
from dml.retrieval.vectors import FlatVectors, write_vectors
from tests.embedding.parts import unit_vectors
from tests.retrieval.gallery.people import (
    DIM,
    ROWS,
    SCHEMA,
    items_of,
    open_in_shards,
    publish,
    vectors_of,
)

WHERE = [
    None,
    "region = 'east'",
    "not (region = 'west') and floor >= 2",
    "floor between 1 and 3 or region is null",
    "region != 'east'",
    "label in ('person 1', 'person 3', 'new 1')",
    "seen >= '2024-02-01'",
]
BASES = {
    "flat": {"factory": "Flat"},
    "lists": {"factory": "IVF4,Flat", "num_probes": 4},
    "graph": {"factory": "HNSW8"},
    "shards": {"factory": "Flat"},
}
QUERIES = vectors_of(3, seed=99)


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
    """A store with an index; (store, name, what opens it)."""
    folder = tmp_path_factory.mktemp("live")
    store, name = str(folder / "store"), request.param
    publish(store, folder, name, items_of(ROWS), vectors_of(ROWS, 1), **BASES[name])
    return store, name, open_in_shards(store) if name == "shards" else open_index


def search(index, vectors, k, **options):
    return index.search(vectors, k, embedder=index.ref.embeddings.embedder.fingerprint, **options)


class Plain:
    """The live items in plain Python: those of the index first, then by their last change."""

    def __init__(self):
        self.items = {item["id"]: item for item in items_of(ROWS)}
        self.vectors = {item["id"]: v for item, v in zip(items_of(ROWS), vectors_of(ROWS, 1), strict=True)}

    def put(self, item, vector):
        self.items.pop(item["id"], None)
        self.items[item["id"]], self.vectors[item["id"]] = item, vector

    def search(self, query, k, where, excluded=None):
        table = pa.Table.from_pylist(list(self.items.values()), SCHEMA)
        matching = matching_rows(table, where, refuse_absent=False)
        rows = [row for row in np.flatnonzero(matching) if table["id"][row].as_py() != excluded]
        ids = [table["id"][row].as_py() for row in rows]
        similarities = [float(self.vectors[id_] @ query) for id_ in ids]
        best = sorted(range(len(ids)), key=lambda place: -similarities[place])[:k]
        return [(ids[place], similarities[place]) for place in best]


numbers = itertools.count()
changes = st.lists(
    st.one_of(
        st.tuples(st.just("enrol"), st.integers(0, 3), st.integers(0, 1 << 20)),
        st.tuples(st.just("update"), st.integers(0, 1000), st.sampled_from(["east", "north"])),
        st.tuples(st.just("relabel"), st.integers(0, 1000), st.sampled_from(["person 1", "new 1"])),
        st.tuples(st.just("forget"), st.integers(0, 1000), st.none()),
        st.tuples(st.just("forget identity"), st.integers(0, 6), st.none()),
        st.tuples(st.just("again"), st.integers(0, 1000), st.integers(0, 1 << 20)),
    ),
    max_size=25,
)


def follow(gallery, plain, change):
    """Make a change to the gallery and to the plain items."""
    kind, number, value = change
    ids = list(plain.items)
    chosen = ids[number % len(ids)]
    if kind == "enrol":
        vector = vectors_of(1, value)
        attributes = {"floor": number, "region": ["east", "west", None][value % 3]}
        ids = [f"extra {next(numbers)}"]
        gallery.enrol(f"new {number}", vectors=vector, attributes=attributes, ids=ids)
        plain.put({"id": ids[0], "label": f"new {number}", "seen": None, **attributes}, vector[0])
    elif kind == "update":
        gallery.update(chosen, attributes={"region": value})
        plain.put({**plain.items[chosen], "region": value}, plain.vectors[chosen])
    elif kind == "relabel":
        gallery.update(chosen, label=value)
        plain.put({**plain.items[chosen], "label": value}, plain.vectors[chosen])
    elif kind == "forget":
        gallery.forget(chosen)
        del plain.items[chosen]
    elif kind == "forget identity":
        mine = [id_ for id_, item in plain.items.items() if item["label"] == f"person {number}"]
        if mine:
            gallery.forget(identity=f"person {number}")
        for id_ in mine:
            del plain.items[id_]
    else:  # forgotten, and enrolled again with another vector under the same id
        gallery.forget(chosen)
        vector = vectors_of(1, value)
        gallery.enrol("again", vectors=vector, ids=[chosen])
        plain.put({"id": chosen, "label": "again", "floor": None, "region": None, "seen": None}, vector[0])


def restarted(store, name, open_base):
    """The gallery of a store without what other tests have written."""
    for ending in ("", "-wal", "-shm"):
        Path(folder_of(store, name), LOG_FILE + ending).unlink(missing_ok=True)
    return Gallery.open(store, name, open_base=open_base)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=changes, k=st.sampled_from([1, 5, 200]), where=st.sampled_from(WHERE))
def test_answers_are_those_of_plain_items_after_any_changes(base, changes, k, where):
    gallery, plain = restarted(*base), Plain()
    for change in changes:
        follow(gallery, plain, change)
    reopened = Gallery.open(base[0], base[1], readonly=True, open_base=base[2])
    for opened in (gallery, reopened):
        found = search(opened.live, QUERIES, k, where=where, refuse_absent=False).answers
        for query, answers in zip(QUERIES, found, strict=True):
            got = [(answer.id, answer.similarity) for answer in answers]
            expected = plain.search(query, k, where)
            if base[1] in ("graph", "lists"):  # which keep any of those that are equal
                assert [value for _, value in got] == [value for _, value in expected]
                assert {id_ for id_, _ in got} <= plain.items.keys()
            else:
                assert got == expected
            for answer in answers:
                item = plain.items[answer.id]
                assert answer.label == item["label"]
                assert answer.attributes == {name: item[name] for name in ("floor", "region", "seen")}
        assert opened.live.num_rows == len(plain.items)
        identities = {item["label"] for item in plain.items.values()}
        assert opened.live.num_identities(None) == len(identities)
        opened.close()


@pytest.fixture
def changed(base):
    """A gallery in which much happened, and the same items in an index that was built of them."""
    gallery, plain = restarted(*base), Plain()
    for number in range(6):
        follow(gallery, plain, ("enrol", number % 3, number))
        follow(gallery, plain, ("forget", 7 * number, None))
        follow(gallery, plain, ("update", 5 * number, "north"))
    yield gallery, plain
    gallery.close()


@pytest.mark.parametrize("base", ["flat"], indirect=True)
def test_all_that_reads_an_index_reads_a_live_one_as_one_that_was_built_of_its_items(changed, tmp_path):
    gallery, plain = changed
    vectors = np.stack([plain.vectors[id_] for id_ in plain.items])
    built = open_index(publish(str(tmp_path / "s"), tmp_path, "built", list(plain.items.values()), vectors))
    live, embedder = gallery.live, built.ref.embeddings.embedder.fingerprint
    for where in WHERE[:5]:
        assert live.count(where) == built.count(where)
        for by in ("query-expansion", "k-reciprocal"):
            pair = [
                reranked_search(index, QUERIES, 5, by=by, embedder=embedder, where=where).answers
                for index in (live, built)
            ]
            assert [[a.id for a in q] for q in pair[0]] == [[a.id for a in q] for q in pair[1]]
        for grouping in ("best", "mean", "all"):
            pair = [
                search_identities(index, QUERIES[0], 4, embedder=embedder, where=where, grouping=grouping)
                for index in (live, built)
            ]
            assert pair[0] == pair[1]
    ids = list(plain.items)
    np.testing.assert_array_equal(live.vectors_of(ids), built.vectors_of(ids))
    parts = [index.items.drop_columns("position").to_pydict() for index in (live, built)]
    assert parts[0] == parts[1]
    found = search(live, live.vectors_of(ids[:2]), 3, exclude_ids=ids[:2]).answers
    expected = search(built, live.vectors_of(ids[:2]), 3, exclude_ids=ids[:2]).answers
    assert [[a.id for a in q] for q in found] == [[a.id for a in q] for q in expected]


def test_a_value_that_only_forgotten_items_had_is_not_there_and_never_named(base):
    gallery = restarted(*base)
    gallery.update("photo 1", label="Rumpelstiltskin")
    assert gallery.live.count("label = 'Rumpelstiltskin'") == 1
    gallery.forget(identity="Rumpelstiltskin")
    gallery.forget(identity="person 3")
    for where in ("label = 'Rumpelstiltskin'", "label = 'person 3'", "label = 'Person 3'", "label > 'x'"):
        with pytest.raises(InvalidFilter) as refused:
            search(gallery.live, QUERIES, 3, where=where)
        told = str(refused.value).split(". ", 1)[1].replace(where, "")
        assert "person 3" not in told
        assert "Rumpel" not in told
    with pytest.raises(MissingArtifact, match="'photo 3' is not"):
        gallery.live.vectors_of(["photo 3"])
    gallery.close()


def test_a_plan_counts_both_parts_and_says_so(changed):
    gallery, plain = changed
    found = search(gallery.live, QUERIES, 500)
    assert (found.plan.count, found.plan.rows, found.plan.k) == (len(plain.items), len(plain.items), 500)
    assert f"{gallery.size.delta} enrolled since compared exactly" in str(found.plan)
    assert f"{len(plain.items)} of 500 answers: no more match" in str(found.plan)


def test_a_delta_computes_the_similarities_of_flat_vectors_bit_for_bit(tmp_path):
    vectors, queries = unit_vectors(700, 48, 5), unit_vectors(30, 48, 6)
    vectors[300:] = vectors[:400]
    with (tmp_path / "vectors.faiss").open("wb") as file:
        write_vectors(file.write, iter([vectors]), rows=700, dim=48)
    flat = FlatVectors(str(tmp_path / "vectors.faiss"))

    def among(few, number, rows):
        return flat.search_among(few, number, rows)

    items = [{"id": str(row)} for row in range(700)]
    delta = Delta(pa.schema([("id", pa.string())]), 48)
    for start in range(0, 700, 100):
        delta = delta.with_items(items[start : start + 100], vectors[start : start + 100])
    for rows in (np.arange(700), np.arange(5, 600, 3)):
        for k in (1, 10, len(rows)):
            expected = first_of_equals(partial(among, rows=rows), queries, k, len(rows))
            found = delta.search(queries, k, rows)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_a_former_delta_does_not_change_and_one_without_items_keeps_nothing_of_them():
    schema = pa.schema([("id", pa.string())])
    first = Delta(schema, DIM).with_items([{"id": "a"}, {"id": "b"}], vectors_of(2, 1))
    second = first.with_items([{"id": "c"}], vectors_of(1, 2))
    other = first.with_items([{"id": "d"}], vectors_of(1, 3))
    assert [delta.table["id"].to_pylist() for delta in (first, second, other)] == [
        ["a", "b"],
        ["a", "b", "c"],
        ["a", "b", "d"],
    ]
    assert first.item("c") is None
    assert first.vector("c") is None
    left = second.without(["b"])
    assert left.table["id"].to_pylist() == ["a", "c"]
    np.testing.assert_array_equal(left.vectors, second.vectors[[0, 2]])
    assert not np.shares_memory(left.vectors, second.vectors)

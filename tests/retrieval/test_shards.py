"""An index in shards answers as the single index does: similarities bit for bit, ties by position."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.embedding.table import cut_table, read_embeddings
from dml.errors import CorruptArtifact, InvalidFilter, InvalidSetting, MissingArtifact
from dml.retrieval.build import build_index
from dml.retrieval.shards import LocalShards, Shard, ShardedIndex, open_index
from tests.embedding.parts import ROWS, table_of, unit_vectors

WHERE = [
    None,
    "shelf in ('top', 'bottom')",
    "year = 2003 and not sold and weight < 10",
    "label = 'class 3' or weight is null",
    "not (shelf = 'top') and year between 1995 and 2010",
    "year > 2100",
]


def with_twins(seed):
    """Unit vectors of which many are equal, also across shards: similarities tie."""
    vectors = unit_vectors(ROWS, 16, seed)
    vectors[50:110] = vectors[:60]
    return vectors


@pytest.fixture(scope="module")
def table(store, package, dataset):
    return table_of(store, package, dataset, with_twins(11))


@pytest.fixture(scope="module")
def single(store, table):
    return open_index(build_index(store, "single", table, IndexConfig()))


@pytest.fixture(scope="module")
def slices(table):
    return cut_table(table, 3)


@pytest.fixture(scope="module")
def sharded(store, table, slices, single):
    """The shards built and opened in this process."""
    built = [build_index(store, "cut", part, IndexConfig()) for part in slices]
    return ShardedIndex(single.ref, LocalShards([Shard(ref) for ref in built]))


def search(index, vectors, k, **options):
    return index.search(vectors, k, embedder=index.ref.embeddings.embedder.fingerprint, **options)


def test_a_table_is_cut_between_its_parts_into_about_equal_numbers_of_rows(table, slices):
    assert [part.parts for part in slices] == [(0, 2), (2, 4), (4, 6)]
    assert sum(part.rows for part in slices) == table.rows
    assert len({part.fingerprint for part in slices}) == 3
    whole = read_embeddings(table)
    parts = [read_embeddings(part) for part in slices]
    np.testing.assert_array_equal(np.concatenate([part.vectors for part in parts]), whole.vectors)
    np.testing.assert_array_equal(np.concatenate([part.positions for part in parts]), whole.positions)


def test_more_shards_than_parts_are_refused(table):
    with pytest.raises(InvalidSetting, match=r"at most the number of parts.*got 7.* has 6"):
        cut_table(table, 7)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("k", [1, 7, ROWS])
def test_answers_are_the_single_indexes_bit_for_bit(single, sharded, where, k):
    vectors = unit_vectors(6, 16, 5)
    vectors[:3] = with_twins(11)[[0, 55, 100]]
    assert search(sharded, vectors, k, where=where).answers == search(single, vectors, k, where=where).answers


def test_the_plan_counts_all_shards_and_says_why_there_are_fewer_answers(single, sharded):
    found = search(sharded, with_twins(11)[:2], ROWS, where="shelf = 'top'")
    expected = search(single, with_twins(11)[:2], ROWS, where="shelf = 'top'")
    assert (found.plan.count, found.plan.rows) == (expected.plan.count, expected.plan.rows)
    assert found.plan.recall.basis == "exact"
    assert "in 3 shards" in str(found.plan)
    assert f"{len(found.answers[0])} of {ROWS} answers: no more match" in str(found.plan)


def test_an_item_is_never_its_own_answer(single, sharded):
    ids = [single.items["id"][row].as_py() for row in (0, 40, 119)]
    vectors = sharded.vectors_of(ids)
    np.testing.assert_array_equal(vectors, single.vectors_of(ids))
    found = search(sharded, vectors, 4, exclude_ids=ids).answers
    assert found == search(single, vectors, 4, exclude_ids=ids).answers
    with pytest.raises(MissingArtifact, match="'nobody' is not among"):
        sharded.vectors_of([ids[0], "nobody"])


@pytest.mark.parametrize(
    ("where", "says"),
    [("shelf = 'tap'", "'top'"), ("colour = 'red'", "shelf"), ("year = 'x'", "year")],
)
def test_a_filter_is_checked_against_all_shards(single, sharded, where, says):
    with pytest.raises(InvalidFilter, match=says):
        search(sharded, with_twins(11)[:1], 3, where=where)


def test_a_value_that_only_another_shard_has_is_no_mistake(sharded, single):
    per_shard = [shard.index.items["year"].to_pylist() for shard in sharded._shards.shards]
    (year,) = list(set(per_shard[0]) - set(per_shard[2]))[:1]
    assert sharded.count(f"year = {year}") == single.count(f"year = {year}") > 0


def test_counts_and_items_are_those_of_the_single_index(single, sharded):
    for where in WHERE[1:]:
        assert sharded.count(where) == single.count(where)
    assert sharded.items.equals(single.items.select(sharded.items.column_names))


@pytest.mark.parametrize("name", ["index.faiss", "items.arrow"])
def test_a_flipped_byte_in_a_shard_is_refused(store, slices, tmp_path, name):
    ref = build_index(store, f"flipped-{name[:5]}", slices[1], IndexConfig())
    file = Path(ref.uri) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptArtifact):
        Shard(ref)


def test_without_a_gpu_a_search_on_a_gpu_is_one_on_the_cpu(single):
    vectors = unit_vectors(3, 16, 8)
    assert (
        search(open_index(single.ref, device="cuda"), vectors, 5).answers
        == search(single, vectors, 5).answers
    )


UNEVEN = [
    "seen >= '2026-01-05'",
    "seen >= '2026-01-05T00:00:00Z'",
    "not (seen < '2026-01-05')",
    "mixed >= '2026-01-05'",
    "mixed = 'not a time'",
    "local between '2026-01-03' and '2026-01-08'",
    "local >= '2026-01-05T00:00:00Z'",
    "within(place, 30.2, 120.1, 50 km)",
    "not within(place, 30.2, 120.1, 50 km)",
    "price < 3.5 or price is null",
    "price = 2.25",
    "price = 2.26",
    "kind = 'a' and not (price > 5)",
    "kind in ('a', 'z')",
    "kind != 'z'",
    "empty is null",
    "empty = 'x'",
]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A table whose columns differ between its shards: all missing, other types of times, other values."""
    folder = tmp_path_factory.mktemp("uneven")
    rows = range(90)
    first, last = [row < 30 for row in rows], [row >= 60 for row in rows]
    days = [f"2026-01-{row % 9 + 1:02d}" for row in rows]
    columns = {
        "id": [f"item {row}" for row in rows],
        "seen": [None if first[row] else f"{days[row]}T12:00:00Z" for row in rows],
        "mixed": ["not a time" if last[row] and row % 7 == 0 else days[row] for row in rows],
        "local": [f"{days[row]}T12:00:00.123456789" if last[row] else days[row] for row in rows],
        "place": [None if first[row] else f"{30 + row % 3}.1,120.{row % 9}" for row in rows],
        "price": [None if first[row] else row % 8 / 4 + row % 5 for row in rows],
        "kind": ["a" if first[row] else "b" if row % 2 else "c" for row in rows],
        "empty": pa.array([None if row % 2 else "" for row in rows], pa.string()),
        "vector": list(unit_vectors(90, 8, 3)),
    }
    parquet.write_table(pa.table(columns), folder / "items.parquet")
    store = str(folder / "store")
    return store, import_vectors(store, "uneven", folder / "items.parquet", block_bytes=30 * 4 * 8).embeddings


@pytest.fixture(scope="module")
def uneven_indexes(uneven):
    store, table = uneven
    whole = open_index(build_index(store, "whole", table, IndexConfig()))
    built = [build_index(store, "cut", part, IndexConfig()) for part in cut_table(table, 3)]
    return whole, ShardedIndex(whole.ref, LocalShards([Shard(ref) for ref in built]))


@pytest.mark.parametrize("where", UNEVEN)
def test_columns_that_differ_between_shards_mean_what_they_do_in_one_index(uneven_indexes, where):
    whole, cut = uneven_indexes
    query = unit_vectors(2, 8, 9)
    if refusal(whole, query, where):
        assert refusal(cut, query, where) == refusal(whole, query, where)
    else:
        assert search(cut, query, 90, where=where).answers == search(whole, query, 90, where=where).answers
        assert cut.count(where) == whole.count(where)


def refusal(index, query, where):
    """Why a filter is refused, without the values that there are; empty: it is followed."""
    try:
        search(index, query, 1, where=where)
    except InvalidFilter as error:
        return error.message.partition(". There are")[0]
    return ""

"""Searching: whatever the plan, the answers are those of comparing with every item that matches."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from dml import storage
from dml.config import IndexConfig
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidData, InvalidSetting
from dml.models.package import load_package
from dml.retrieval.build import build_index
from dml.retrieval.bundle import Items
from dml.retrieval.bundle_index import BundleIndex
from dml.retrieval.index import find_index, publish_index
from dml.retrieval.recall_table import EXACT
from dml.retrieval.shards import open_index
from tests.embedding.parts import ROWS, png, table_of, unit_vectors
from tests.retrieval.calibrations import eager

FACTORIES = [
    "Flat",
    "IVF12,Flat",
    "IVF12,SQ8",
    "IVF12,SQfp16",
    "HNSW8",
    "SQ8",
    "PCA16,IVF12,Flat",
    "IVF12,PQ4x4fs,RFlat",
    "NSG8",
    "IVF4,PQ4x4",
    "RaBitQ",
    "IVF4,RaBitQ",
    "PQ4x4fs",
]
FILTERS = {
    "shelf = 'top' and shelf = 'bottom'": lambda item: False,
    "year = 2003 and not sold and weight < 10": lambda item: (
        item["year"] == 2003 and item["sold"] is not True and (item["weight"] or 99) < 10
    ),
    "label = 'class 3'": lambda item: item["label"] == "class 3",
    "shelf in ('top', 'middle') and year >= 2000": lambda item: (
        item["shelf"] in ("top", "middle") and (item["year"] or 0) >= 2000
    ),
    "split = 'test'": lambda item: item["split"] == "test",
    "year >= 1900": lambda item: item["year"] is not None,
    None: lambda item: True,
}
"""Each beside what a person reads in it."""


def with_twins(seed):
    """Unit vectors of which many are equal: similarities tie."""
    vectors = unit_vectors(ROWS, 16, seed)
    vectors[60:] = vectors[: ROWS - 60]
    return vectors


@pytest.fixture(scope="module")
def vectors():
    return with_twins(5)


@pytest.fixture(scope="module")
def built(store, package, dataset, vectors):
    """An index of each factory; IVF with a single probe, where the planner has most to mend."""
    table = table_of(store, package, dataset, vectors)
    return {
        factory: build_index(store, f"by-{number}", table, IndexConfig(factory=factory, num_probes=1))
        for number, factory in enumerate(FACTORIES)
    }


@pytest.fixture(scope="module")
def opened(built):
    return {factory: open_index(ref) for factory, ref in built.items()}


def brute_force(index, vectors, query, k, where):
    items = index.items.to_pylist()
    matching = [i for i, item in enumerate(items) if FILTERS[where](item)]
    return sorted(matching, key=lambda i: (-float(vectors[i] @ query), i))[:k]


@pytest.mark.parametrize("by_index", [True, False], ids=["by the index", "by scan"])
@pytest.mark.parametrize("where", FILTERS)
@pytest.mark.parametrize("factory", FACTORIES)
def test_exactly_k_matching_answers_unless_fewer_match(built, vectors, package, factory, where, by_index):
    calibration = eager(12 if "IVF12" in factory else 4, candidates=2) if by_index else None
    index = BundleIndex(built[factory], calibration=calibration)
    queries = unit_vectors(5, 16, seed=8)
    for k in (1, 7, 100, 500):
        result = index.search(queries, k, where=where, embedder=package.fingerprint)
        for query, answers in zip(queries, result.answers, strict=True):
            expected = brute_force(index, vectors, query, k, where)
            assert len(answers) == len(expected)
            assert len({answer.id for answer in answers}) == len(expected)
            assert {answer.position for answer in answers} <= set(
                brute_force(index, vectors, query, ROWS, where)
            )
            found = vectors[[answer.position for answer in answers]] @ query
            np.testing.assert_allclose([answer.similarity for answer in answers], found, atol=1e-6)
            order = [(-answer.similarity, answer.position) for answer in answers]
            assert order == sorted(order)
            assert ("no more match" in str(result.plan)) == (len(expected) < k)
            if len(answers) == ROWS or result.plan.recall == EXACT:
                assert_same_answers(index, vectors, query, answers, expected)


def assert_same_answers(index, vectors, query, answers, expected):
    """Equal similarities at the last place may be told apart either way; everything else is exact."""
    found = [answer.position for answer in answers]
    np.testing.assert_allclose(vectors[found] @ query, vectors[expected] @ query, atol=1e-6)
    similarities = [answer.similarity for answer in answers]
    np.testing.assert_allclose(similarities, vectors[expected] @ query, atol=1e-6)


def test_equal_similarities_rank_by_position(opened, vectors, package):
    result = opened["Flat"].search(vectors[:10], 2, where="year >= 1900", embedder=package.fingerprint)
    assert [[a.position for a in answers] for answers in result.answers] == [[i, i + 60] for i in range(10)]


def test_an_answer_brings_what_is_known_of_its_item(opened, vectors, package):
    index = opened["Flat"]
    item = index.items["id"].to_pylist().index("00003.png")
    where = ["weight < 0.5", "not sold"]
    answers = index.search(vectors[item : item + 1], 9, where=where, embedder=package.fingerprint).answers[0]
    answer = next(answer for answer in answers if answer.position == item)
    assert (answer.id, answer.label, answer.split) == ("00003.png", "class 3", "train")
    assert answer.similarity == pytest.approx(1.0, abs=1e-6)
    assert answer.attributes == {"shelf": "top", "sold": False, "weight": 0.375, "year": 1993}


def test_each_query_can_leave_itself_out(opened, vectors, package):
    index = opened["Flat"]
    ids = index.items["id"].to_pylist()
    result = index.search(vectors[:60], 1, embedder=package.fingerprint, exclude_ids=ids[:60])
    assert [answers[0].position for answers in result.answers] == list(range(60, 120))
    same_year = index.search(
        vectors[:1], 4, where="year = 1993", embedder=package.fingerprint, exclude_ids=["00003.png"]
    )
    assert {answer.id for answer in same_year.answers[0]} == {"00043.png", "00083.png"}
    assert "2 of 4 answers" in str(same_year.plan)
    with pytest.raises(ValueError, match="one item per query"):
        index.search(vectors[:2], 1, embedder=package.fingerprint, exclude_ids=["00003.png"])


def test_the_plan_says_what_was_done(built, opened, vectors, package):
    few = {"k": 5, "embedder": package.fingerprint}

    def plan(index, **arguments):
        return str(index.search(vectors[:1], **few, **arguments).plan)

    index, eagerly = opened["IVF12,Flat"], BundleIndex(built["IVF12,Flat"], calibration=eager(12))
    assert plan(index) == "IVF12,Flat over 120 items"
    assert plan(index, where="sold") == "60 of 120 items match, compared with all of them"
    assert plan(eagerly, where="sold") == "60 of 120 items match, IVF12,Flat among them, 2 lists"
    assert plan(eagerly, where="year >= 1900") == "120 of 120 items match, IVF12,Flat"
    found = index.search(vectors[:1], 100, embedder=package.fingerprint)
    assert "1 of 1 queries compared with all, too few in their lists" in str(found.plan)


def test_a_query_that_is_short_of_answers_does_not_send_the_others_to_a_scan(built, vectors, package):
    """Without a filter the list of some has too few; with one, the lists of some have so many matches that
    comparing with all costs less."""
    index = BundleIndex(built["IVF12,Flat"], calibration=eager(12, match_us=3.0, k=1))
    for where, k in ((None, 10), ("sold", 1)):
        result = index.search(unit_vectors(40, 16, 8), k, where=where, embedder=package.fingerprint)
        (note,) = result.plan.notes
        assert 0 < int(note.split()[0]) < 40, "some of the queries, not all"
        assert all(len(answers) == k for answers in result.answers)


@pytest.mark.parametrize("where", [None, "sold"])
def test_queries_in_double_precision_are_answered_as_in_single(built, package, where):
    queries = unit_vectors(3, 16, 8)
    index = BundleIndex(built["IVF12,Flat"], calibration=eager(12))
    single, double = (
        index.search(each, 5, where=where, embedder=package.fingerprint).answers
        for each in (queries, queries.astype(np.float64))
    )
    assert double == single


def test_what_was_timed_on_another_processor_is_said(built, vectors, package):
    index = BundleIndex(built["IVF12,Flat"], calibration=eager(12))
    plan = index.search(vectors[:1], 2, where="sold", embedder=package.fingerprint).plan
    assert plan.timed_elsewhere == "any"
    assert any("any: on this processor the costs may differ" in text for _, text in plan.explained())


@pytest.mark.parametrize("where", [None, "year >= 1900"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_no_query_gives_no_answers(opened, package, factory, where):
    none = np.empty((0, 16), np.float32)
    assert opened[factory].search(none, 3, embedder=package.fingerprint, where=where).answers == []


def test_a_query_of_another_package_is_refused(opened, vectors, package):
    with pytest.raises(
        IncompatibleArtifact, match=f"holds vectors of package {package.version}.*0badbadbad00"
    ):
        opened["Flat"].search(vectors[:1], 1, embedder="0badbadbad00" + "f" * 52)


@pytest.mark.parametrize(
    ("queries", "k", "error", "message"),
    [
        (np.ones((1, 8), np.float32), 1, InvalidData, r"\(Q, 16\)"),
        (np.ones(16, np.float32), 1, InvalidData, r"\(Q, 16\)"),
        (np.full((1, 16), 0.5, np.float32), 1, InvalidData, "length 1"),
        (np.full((1, 16), np.nan, np.float32), 1, InvalidData, "length 1"),
        (np.eye(3, 16, dtype=np.float32) * [[1], [2], [1]], 1, InvalidData, "lengths 1.0 to 2.0"),
        (np.eye(3, 16, dtype=np.float32) * [[1], [np.nan], [1]], 1, InvalidData, "length 1"),
        (np.eye(3, 16, dtype=np.float32) * [[1], [np.nan], [1]], 1, InvalidData, "1 of 3 have NaN"),
        (np.eye(1, 16).tolist(), 1, InvalidData, "array .* of real numbers; got list"),
        (np.eye(1, 16).astype(np.complex64), 1, InvalidData, "real numbers; got complex64"),
        (np.full((1, 16), "1"), 1, InvalidData, "real numbers; got <U1"),
        (unit_vectors(1, 16, 0), 0, InvalidSetting, "k must be"),
    ],
)
def test_queries_that_cannot_be_answered_are_refused(opened, package, queries, k, error, message):
    with pytest.raises(error, match=message):
        opened["Flat"].search(queries, k, embedder=package.fingerprint)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF12,SQ8"])
def test_queries_in_any_order_of_memory_find_the_same(opened, package, factory):
    queries = unit_vectors(4, 16, 2)
    expected = opened[factory].search(queries, 5, embedder=package.fingerprint).answers
    wide = np.zeros((8, 32), np.float32)
    wide[::2, ::2] = queries
    for each in (np.asfortranarray(queries), wide[::2, ::2]):
        assert opened[factory].search(each, 5, embedder=package.fingerprint).answers == expected
    assert opened[factory].search(wide[:1, ::2], 5, embedder=package.fingerprint).answers == expected[:1]


def test_no_row_is_answered_twice_by_a_graph_that_is_searched_whole(store, package, dataset, vectors):
    """Faiss' NSG finds some rows twice, and looks for more rows than it has for ever."""
    table = table_of(store, package, dataset, vectors)
    index = BundleIndex(
        build_index(store, "graph-of-codes", table, IndexConfig(factory="NSG8,SQ8", recall=0.9))
    )
    query = unit_vectors(1, 16, 8)
    answers = index.search(query, ROWS, embedder=package.fingerprint).answers[0]
    assert {answer.position for answer in answers} == set(range(ROWS))


def test_an_unknown_attribute_is_refused_with_those_there_are(opened, vectors, package):
    with pytest.raises(InvalidSetting, match="shelf"):
        opened["Flat"].search(vectors[:1], 1, where="shelv = 'top'", embedder=package.fingerprint)


def test_an_image_of_the_dataset_finds_itself_through_a_remote_store(embeddings, package, s3_store):
    ref = build_index(s3_store, "shelves", embeddings, IndexConfig())
    loaded = load_package(ref.embeddings.embedder.uri)
    result = open_index(ref).search(loaded.embed([png(42)]), 3, embedder=loaded.ref.fingerprint)
    assert result.answers[0][0].id == "00042.png"
    assert result.answers[0][0].similarity == pytest.approx(1.0, abs=1e-5)


def flip(path, offset):
    content = bytearray(Path(path).read_bytes())
    for place in range(offset, offset + 4):
        content[place] ^= 0xFF
    Path(path).write_bytes(content)


@pytest.mark.parametrize("name", ["index.faiss", "items.arrow"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_an_index_whose_bytes_have_changed_is_not_opened(tmp_path, embeddings, name, share):
    ref = build_index(str(tmp_path), "shelves", embeddings, IndexConfig())
    open_index(ref)
    path = Path(ref.uri, name)
    flip(path, int(share * (path.stat().st_size - 4)))
    with pytest.raises(CorruptArtifact, match=f"{name}.*--repair"):
        open_index(ref)


def with_vector(ref, row, value):
    """The index with one vector changed, sealed as if it had been built so."""
    path = f"{ref.uri}/index.faiss"
    index = faiss.read_index(path)
    vectors = index.reconstruct_n(0, ref.rows)
    vectors[row] = value
    changed = faiss.IndexFlatIP(ref.embeddings.dim)
    changed.add(vectors)
    faiss.write_index(changed, path)
    manifest = storage.read_manifest(ref.uri)
    storage.seal(ref.uri, {name: value for name, value in manifest.items() if name != "files"})


@pytest.mark.parametrize("value", [1e36, np.nan, -3.0])
def test_a_similarity_that_cannot_be_is_no_answer(tmp_path, embeddings, package, value):
    store = str(tmp_path)
    former = build_index(store, "shelves", embeddings, IndexConfig(recall_queries=7))
    publish_index(store, former)
    ref = build_index(store, "shelves", embeddings, IndexConfig())
    with_vector(ref, 0, value)
    with pytest.raises(CorruptArtifact, match=r"similarities in \[-1, 1\]"):
        open_index(ref).search(np.eye(16, dtype=np.float32), ROWS, embedder=package.fingerprint)
    with_vector(ref, 0, np.nan)
    with pytest.raises(CorruptArtifact, match="must"):
        publish_index(store, ref)
    assert find_index(store, "shelves") == former, "what cannot be searched is not published"


def test_an_index_and_items_of_different_length_are_not_opened(tmp_path, embeddings):
    ref = build_index(str(tmp_path), "shelves", embeddings, IndexConfig())
    index = faiss.read_index(f"{ref.uri}/index.faiss")
    index.add(index.reconstruct_n(0, 1))
    faiss.write_index(index, f"{ref.uri}/index.faiss")
    manifest = storage.read_manifest(ref.uri)
    storage.seal(ref.uri, {name: value for name, value in manifest.items() if name != "files"})
    with pytest.raises(CorruptArtifact, match=f"{ROWS + 1}, {ROWS + 1} and {ROWS}"):
        open_index(ref)


def test_a_filter_that_faiss_does_not_honour_is_noticed(built, vectors, package):
    everything = faiss.IDSelectorAll()
    index = BundleIndex(built["IVF12,Flat"], calibration=eager(12), selector=lambda _: everything)
    result = index.search(vectors[:4], 5, where="sold", embedder=package.fingerprint)
    assert all(answer.attributes["sold"] for answers in result.answers for answer in answers)
    assert "compared with all" in str(result.plan)


def test_rows_beyond_the_reach_of_32_bit_offsets_are_found():
    """34.6 million digests of 64 letters are 2.2 GB; the chunks of this table share their memory."""
    size, count = 1 << 20, 33
    digests = pa.array([f"{row:064x}" for row in range(size)])
    numbers = [pa.array(np.full(size, number, np.int16)) for number in range(count)]
    chunks = [pa.record_batch({"sha256": digests, "chunk": own}) for own in numbers]
    items = Items(pa.Table.from_batches(chunks))
    assert len(items.table) * 64 > 2**31
    rows = np.array([count * size - 1, 0, 32 * size + 5, 7, 7])
    found = items.take(rows)
    assert [(row["chunk"], int(row["sha256"], 16)) for row in found] == [
        (32, size - 1),
        (0, 0),
        (32, 5),
        (0, 7),
        (0, 7),
    ]


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_query_alone_is_answered_as_in_a_batch(opened, package, factory):
    queries = unit_vectors(20, 16, seed=8)
    together = opened[factory].search_rows(queries, 7, embedder=package.fingerprint)[0]
    alone = [
        opened[factory].search_rows(query[None], 7, embedder=package.fingerprint)[0] for query in queries
    ]
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1, 10, 17, 60])
def test_rows_are_taken_in_the_order_that_they_are_named_in(number):
    table = pa.table({"id": [f"{n:03d}" for n in range(90)], "year": [None, 1999, 2000] * 30})
    rows = np.random.default_rng(4).integers(0, 90, number)
    for chunk_rows in (90, 7):
        items = Items(pa.Table.from_batches(table.to_batches(max_chunksize=chunk_rows)))
        assert items.take(rows) == [table.slice(int(row), 1).to_pylist()[0] for row in rows]

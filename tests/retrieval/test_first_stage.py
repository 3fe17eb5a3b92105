"""Which first stage of a cascade is kept depends on the vectors; its figures are those of plain loops."""

import shutil

import faiss
import numpy as np
import pytest

from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.embedding.table import cut_table
from dml.errors import CorruptArtifact, InvalidSetting
from dml.retrieval.build import build_index
from dml.retrieval.bundle import read_calibration
from dml.retrieval.cascade import Cascade
from dml.retrieval.first_stage import FirstStage, compared_in_full, factory_of
from dml.retrieval.first_stage_choice import choose_first_stage
from dml.retrieval.held_out import HeldOut
from dml.retrieval.index import publish_index
from dml.retrieval.plan import choose_plan
from dml.retrieval.shards import LocalShards, Shard, ShardedIndex, open_index
from dml.retrieval.vectors import FlatVectors, write_vectors
from dml.serving.searcher import Searcher

ROWS, DIM, QUERIES = 4_000, 64, 80


def low_rank(rng):
    """Nearly all variance in 8 directions, as of a trained embedding."""
    scales = np.r_[np.full(8, 1.0), np.full(DIM - 8, 0.02)]
    return rng.standard_normal((ROWS, DIM)) * scales


def isotropic(rng):
    """The same variance in all directions; four rows of each of a thousand classes."""
    return np.repeat(rng.standard_normal((ROWS // 4, DIM)), 4, axis=0) + 0.5 * rng.standard_normal(
        (ROWS, DIM)
    )


@pytest.fixture
def flat(tmp_path):
    def written(drawn):
        unit = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        path = tmp_path / "vectors.faiss"
        with path.open("wb") as file:
            write_vectors(file.write, iter([unit]), rows=len(unit), dim=DIM)
        vectors = FlatVectors(str(path))
        rows = np.random.default_rng(1).choice(len(unit), QUERIES, replace=False)
        nearest = vectors.search(unit[rows], 4)[1]
        return vectors, HeldOut.of(rows, unit[rows], nearest, np.arange(len(unit)) // 4)

    return written


def filled(kind, vectors):
    index = faiss.index_factory(DIM, factory_of(kind, DIM), faiss.METRIC_L2)
    every = vectors.take(np.arange(vectors.rows))
    index.train(every)
    index.add(every)
    return FirstStage(index)


@pytest.mark.parametrize(("drawn", "is_of_components"), [(low_rank, True), (isotropic, False)])
def test_components_find_vectors_of_a_low_rank_and_no_isotropic_ones(flat, drawn, is_of_components):
    vectors, held_out = flat(drawn(np.random.default_rng(0)))
    _, choice = choose_first_stage(vectors, held_out, target=0.95, kinds=("pca16", "signs"))
    (components,) = (each for each in choice.trials if (each.kind, each.shortlist) == ("pca16", 100))
    (signs,) = (each for each in choice.trials if (each.kind, each.shortlist) == ("signs", 100))
    assert (components.recall >= 0.95) == is_of_components
    assert (components.recall > signs.recall) == is_of_components


def test_what_is_kept_depends_on_the_vectors(flat):
    kinds = ("pca16", "signs")  # at one shortlist each reaches the target on one of them only
    chosen = []
    for drawn in (low_rank, isotropic):
        vectors, held_out = flat(drawn(np.random.default_rng(0)))
        index, choice = choose_first_stage(vectors, held_out, target=0.8, kinds=kinds, shortlists=(100,))
        chosen.append(choice.chosen.kind)
        assert index.ntotal == ROWS
        assert choice.chosen.recall >= 0.8
    assert chosen == ["pca16", "signs"]


@pytest.mark.parametrize("kind", ["pca16", "pca32", "signs", "rabitq", "pq4", "pq8"])
def test_a_trials_recall_is_that_of_a_plain_loop(flat, kind):
    vectors, held_out = flat(low_rank(np.random.default_rng(0)))
    index, choice = choose_first_stage(vectors, held_out, target=0.01, kinds=(kind,))
    every, stage, found, mates = vectors.take(np.arange(ROWS)), FirstStage(index), 0, 0
    for row, query, truth in zip(held_out.rows, held_out.queries, held_out.truth, strict=True):
        (candidates,) = stage.candidates(query[None], choice.chosen.shortlist)
        by_similarity = sorted(candidates.tolist(), key=lambda number: -float(every[number] @ query))
        answers = [number for number in by_similarity if number != row][: len(truth)]
        found += len(set(answers) & set(truth.tolist()))
        mates += answers[0] // 4 == row // 4
    assert found / held_out.truth.size == pytest.approx(choice.chosen.recall, abs=0.005)
    assert mates / QUERIES == pytest.approx(choice.chosen.mate_at_1, abs=0.015)
    assert (
        choice.chosen.bytes_per_vector
        == {
            "pca16": 32,
            "pca32": 64,
            "signs": 8,
            "rabitq": 16,
            "pq4": 8,
            "pq8": 4,
        }[kind]
    )


def test_signs_are_compared_with_the_query_in_full(flat):
    vectors, held_out = flat(isotropic(np.random.default_rng(0)))
    every = vectors.take(np.arange(ROWS))
    stage = filled("signs", vectors)
    medians = np.median(every, axis=0)
    signs = np.where(every > medians, 1.0, -1.0)
    query = held_out.queries[0]
    nearest = np.argsort(((every > medians) != (query > medians)).sum(axis=1), kind="stable")[:400]
    expected = nearest[np.argsort(-(signs[nearest] @ (query - medians)), kind="stable")[:100]]
    (candidates,) = stage.candidates(query[None], 100)
    assert len(np.intersect1d(candidates, expected)) >= 95  # equal Hamming distances, cut at 400


def test_no_first_stage_is_kept_where_none_reaches_the_target(flat):
    vectors, held_out = flat(np.random.default_rng(0).standard_normal((ROWS, DIM)))
    index, choice = choose_first_stage(vectors, held_out, target=1.0, kinds=("pq8",), shortlists=(100,))
    assert (index, choice.chosen) == (None, None)
    assert [trial.kind for trial in choice.trials] == ["pq8"]


def test_components_and_parts_that_a_dimension_has_not_are_not_tried():
    assert [factory_of(kind, 16) for kind in ("pca16", "pca32", "pq4")] == [None, None, "PQ4x4fs"]
    assert factory_of("pq8", 20) is None


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 31, 32])
def test_of_few_rows_only_what_can_be_trained_on_them_is_tried(tmp_path, rows):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).standard_normal((rows, DIM)))
    table = import_vectors(str(tmp_path), "few", tmp_path / "few.npy").embeddings
    ref = build_index(str(tmp_path), "few", table, IndexConfig(factory="Flat", first_stage="auto"))
    choice = read_calibration(ref).first_stage
    tried = set() if choice is None else {trial.kind for trial in choice.trials}
    assert ({"pq4", "pq8", "pca16"} <= tried) == (rows >= 16)
    assert ("pca32" in tried) == (rows >= 32)
    assert ({"signs", "rabitq"} <= tried) == (rows > 1)


@pytest.mark.parametrize(
    ("kind", "rows", "dim", "message"),
    [
        ("pq4", 15, DIM, "at least 16 rows for first_stage pq4; it has 15. Use auto"),
        ("pq8", 15, DIM, "at least 16 rows for first_stage pq8; it has 15"),
        ("pca16", 15, DIM, "at least 16 rows for first_stage pca16; it has 15"),
        ("pca32", 31, DIM, "at least 32 rows for first_stage pca32; it has 31"),
        ("signs", 1, DIM, "at least 2 rows for first_stage signs; it has 1"),
        ("rabitq", 1, DIM, "at least 2 rows for first_stage rabitq; it has 1"),
        ("pca32", 40, 32, "must be above 32 for first_stage pca32; it is 32"),
        ("pq4", 40, 30, "must be a multiple of 4 above 4 for first_stage pq4; it is 30"),
    ],
)
def test_a_first_stage_that_cannot_be_trained_is_refused_with_what_it_needs(
    tmp_path, kind, rows, dim, message
):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).standard_normal((rows, dim)))
    table = import_vectors(str(tmp_path), "few", tmp_path / "few.npy").embeddings
    with pytest.raises(InvalidSetting, match=message):
        build_index(str(tmp_path), "few", table, IndexConfig(first_stage=kind, recall=0.5))
    assert not list((tmp_path / "indexes").rglob("items.parquet"))


def test_a_cascade_answers_with_candidates_compared_in_full_and_says_what_each_stage_did(flat):
    vectors, held_out = flat(low_rank(np.random.default_rng(0)))
    index, choice = choose_first_stage(vectors, held_out, target=0.95, kinds=("pca16",))
    stage = FirstStage(index)
    cascade = Cascade(stage, vectors, choice)
    plan = choose_plan(ROWS, ROWS, 5, filtered=False)
    (similarities, rows), done = cascade.search(held_out.queries, 5, plan)
    shortlist = choice.chosen.shortlist
    expected = compared_in_full(vectors, held_out.queries, 5, stage.candidates(held_out.queries, shortlist))
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_allclose(
        similarities,
        np.einsum("qd,qkd->qk", held_out.queries, vectors.take(rows.ravel()).reshape(*rows.shape, -1)),
        atol=1e-5,
    )
    assert [(each.name, each.budget) for each in done.stages] == [("pca16", ROWS), ("in full", shortlist)]
    assert str(done) == f"pca16 -> in full over {ROWS} items"
    assert done.recall.value == choice.chosen.recall


def test_more_answers_have_more_candidates_until_comparing_all_is_as_cheap(flat):
    vectors, held_out = flat(low_rank(np.random.default_rng(0)))
    index, choice = choose_first_stage(vectors, held_out, target=0.95, kinds=("pca16",), shortlists=(100,))
    cascade = Cascade(FirstStage(index), vectors, choice)
    per_answer = choice.chosen.shortlist // 10
    assert cascade.shortlist(30) == 30 * per_answer
    assert cascade.suits(10)
    assert not cascade.suits(ROWS // 2 // per_answer + 1)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A store with an index of 600 imported vectors, and these."""
    store = tmp_path_factory.mktemp("cascade")
    drawn = np.random.default_rng(0).standard_normal((600, DIM)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    np.save(store / "vectors.npy", drawn)
    table = import_vectors(str(store), "people", store / "vectors.npy").embeddings
    ref = build_index(str(store), "people", table, IndexConfig(first_stage="signs", recall=0.5))
    publish_index(str(store), ref)
    return store, ref, drawn


def test_an_index_keeps_its_first_stage_and_searches_by_it_where_there_is_no_filter(built):
    store, ref, drawn = built
    choice = read_calibration(ref).first_stage
    assert ref.recall == choice.chosen.recall
    searcher = Searcher.open(store, "people")
    (result,) = searcher.search_vectors(drawn[:1], k=2)
    assert result.plan.kind == "cascade"
    assert [stage.name for stage in result.plan.stages] == ["signs", "in full"]
    assert (result.answers[0].id, round(result.answers[0].similarity, 5)) == ("0", 1.0)
    (filtered,) = searcher.search_vectors(drawn[:1], k=2, where="id = '7'")
    assert (filtered.plan.kind, [answer.id for answer in filtered.answers]) == ("exact", ["7"])
    (every,) = searcher.search_vectors(drawn[:1], k=100)
    assert every.plan.kind == "index", "1,000 candidates are more than half of 600"
    assert len(every.answers) == 100


@pytest.mark.parametrize("second", ["signs", "pq4"])
def test_the_stages_of_shards_are_those_of_all_where_they_are_the_same(built, second):
    store, _, drawn = built
    found = import_vectors(str(store), "shards", store / "vectors.npy", block_bytes=300 * 4 * DIM)
    refs = [
        build_index(str(store), "cut", part, IndexConfig(first_stage=kind, recall=0.5))
        for part, kind in zip(cut_table(found.embeddings, 2), ("signs", second), strict=True)
    ]
    whole = build_index(str(store), "whole", found.embeddings, IndexConfig())
    sharded = ShardedIndex(whole, LocalShards([Shard(ref) for ref in refs]))
    result = sharded.search(drawn[[7, 400]], 2, embedder=whole.embeddings.embedder.fingerprint)
    assert [answers[0].id for answers in result.answers] == ["7", "400"]
    assert result.plan.kind == "cascade"
    assert result.plan.stages[0].budget == (600 if second == "signs" else 300)


def test_a_cascade_ends_with_a_re_ranker_if_one_is_asked_for(built):
    store, _, drawn = built
    (result,) = Searcher.open(store, "people").search_vectors(drawn[:1], k=2, rerank="k-reciprocal")
    assert [(stage.name, stage.budget) for stage in result.plan.stages][-1] == ("k-reciprocal", 100)
    report = result.report()
    assert report.execution is not None
    assert [stage.name for stage in report.execution.stages][-1] == "k-reciprocal"


def test_a_first_stage_whose_bytes_have_changed_is_not_opened(built, tmp_path):
    _, ref, _ = built
    copied = tmp_path / "copied"
    shutil.copytree(ref.uri, copied)
    content = bytearray((copied / "first_stage.faiss").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "first_stage.faiss").chmod(0o644)
    (copied / "first_stage.faiss").write_bytes(content)
    with pytest.raises(CorruptArtifact):
        open_index(ref.model_copy(update={"uri": str(copied)}))

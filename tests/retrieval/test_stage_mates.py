"""How often a stage finds a mate is measured at build, and is said of each stage in an answer."""

import numpy as np
import pytest

from dml.config import IndexConfig
from dml.retrieval.build import build_index
from dml.retrieval.bundle import read_calibration
from dml.retrieval.rerank import reranked_search
from dml.retrieval.shards import open_index
from tests.retrieval.test_calibration import enrol, people


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The store, an index of 360 people with three images each, and the same behind a first stage."""
    store, ref = enrol(tmp_path_factory.mktemp("mates"))
    config = IndexConfig(first_stage="signs", recall=0.5)
    return store, ref, build_index(store, "cascade", ref.embeddings, config)


def stages_of(ref):
    return {stage.stage: stage for stage in read_calibration(ref).stages}


def test_the_share_is_that_of_queries_with_a_mate_among_the_ten_nearest_others(built):
    vectors, labels, _ = people()
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -2)
    nearest = labels[np.argsort(-similarities, axis=1)[:, :10]] == labels[:, None]
    (measured,) = [stage for name, stage in stages_of(built[1]).items() if "Flat" in name]
    assert (measured.num_queries, measured.handed_on) == (100, 10)
    assert measured.mate_recall == pytest.approx(nearest.any(axis=1).mean(), abs=0.1)
    assert measured.mate_at_1 == pytest.approx(nearest[:, 0].mean(), abs=0.12)


def test_a_first_stage_hands_on_candidates_and_the_next_ten_of_them(built):
    stages = stages_of(built[2])
    assert list(stages) == ["Flat", "signs", "in full", "query-expansion", "k-reciprocal"]
    first, second = stages["signs"], stages["in full"]
    assert first.handed_on > second.handed_on == 10
    assert first.mate_recall >= second.mate_recall >= second.mate_at_1
    assert first.mate_at_1 is None


@pytest.mark.parametrize("name", ["query-expansion", "k-reciprocal"])
def test_a_re_ranker_is_measured_as_it_searches(built, name):
    index = open_index(built[1])
    vectors, labels, _ = people()
    rows = np.arange(0, len(labels), 3)
    result = reranked_search(
        index,
        vectors[rows],
        10,
        by=name,
        embedder=index.ref.embeddings.embedder.fingerprint,
        exclude_ids=[f"image {row}" for row in rows],
    )
    first = [
        of_query[0].label == f"person {labels[row]}"
        for row, of_query in zip(rows, result.answers, strict=True)
    ]
    assert stages_of(built[1])[name].mate_at_1 == pytest.approx(np.mean(first), abs=0.12)


def test_an_answer_says_the_mate_recall_of_each_stage(built):
    index, known = open_index(built[2]), stages_of(built[2])
    result = reranked_search(
        index, people()[0][:2], 5, by="query-expansion", embedder=index.ref.embeddings.embedder.fingerprint
    )
    said = {stage.name: stage.mate_recall for stage in result.plan.stages}
    assert said == {name: known[name].mate_recall for name in ("signs", "in full", "query-expansion")}
    assert f"mate-recall {said['query-expansion']:.3f}" in "".join(
        text for _, text in result.plan.explained()
    )


def test_a_filter_and_a_function_of_the_user_have_none(built):
    index = open_index(built[1])
    embedder = index.ref.embeddings.embedder.fingerprint
    filtered = reranked_search(
        index, people()[0][:1], 5, by="k-reciprocal", where="region = 'region 1'", embedder=embedder
    )
    own = reranked_search(
        index, people()[0][:1], 5, by=lambda query, found: found.vectors @ query, embedder=embedder
    )
    assert [stage.mate_recall for stage in filtered.plan.stages] == [None, None]
    assert own.plan.stages[-1].mate_recall is None
    assert own.plan.stages[0].mate_recall is not None


def test_without_labels_there_is_nothing_to_measure(tmp_path):
    _, ref = enrol(tmp_path, labelled=False, regions=1, per_region=10)
    assert read_calibration(ref).stages == ()

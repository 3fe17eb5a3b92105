"""Search parameters reach the recall target at least cost, and the curve says what others find and cost."""

import faiss
import numpy as np
import pytest

from dml.retrieval.held_out import HeldOut, without_itself
from dml.retrieval.tune import keeps_vectors, refined, tune

ROWS, DIM, QUERIES, PER_LABEL = 3000, 24, 100, 4


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((ROWS // PER_LABEL, DIM), dtype=np.float32)
    drawn = np.repeat(centers, PER_LABEL, axis=0) + 0.3 * rng.standard_normal((ROWS, DIM), dtype=np.float32)
    faiss.normalize_L2(drawn)
    return drawn


@pytest.fixture(scope="module")
def flat(vectors):
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    return index


@pytest.fixture(scope="module")
def held_out(vectors, flat):
    rows = np.random.default_rng(1).choice(ROWS, QUERIES, replace=False)
    _, nearest = flat.search(vectors[rows], 11)
    return HeldOut.of(rows, vectors[rows], nearest, np.arange(ROWS) // PER_LABEL)


def filled(factory, vectors):
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index


def recall_by_plain_loop(index, held_out):
    """Of the 10 nearest others, query by query."""
    found = 0
    for row, query, truth in zip(held_out.rows, held_out.queries, held_out.truth, strict=True):
        _, (nearest,) = index.search(query[None], 11)
        others = [number for number in nearest if number != row][:10]
        found += len(set(others) & set(truth.tolist()))
    return found / (10 * len(held_out.rows))


@pytest.mark.parametrize("factory", ["IVF64,Flat", "IVF64,SQfp16", "HNSW8", "IVF16,PQ12x4fs", "SQ4"])
def test_the_recall_target_is_reached_and_is_that_of_a_plain_loop(factory, vectors, flat, held_out):
    index = filled(factory, vectors)
    curve = tune(index, flat, held_out, target=0.9)
    assert curve.chosen.recall >= 0.9
    as_many_candidates = (10 * curve.k_factor + 1.5) / 11 if curve.k_factor else 0  # of 10 and the query
    searched = refined(index, flat, as_many_candidates)
    assert recall_by_plain_loop(searched, held_out) == pytest.approx(curve.chosen.recall, abs=0.003)


def test_the_fewest_lists_are_scanned_whose_recall_is_above_the_target_by_its_standard_error(
    vectors, flat, held_out
):
    index = filled("IVF64,Flat", vectors)
    tune(index, flat, held_out, target=0.9)

    def lowest():
        recalls = held_out.recalls(index.search(held_out.queries, 11)[1])
        return recalls.mean() - recalls.std() / np.sqrt(QUERIES)

    assert lowest() >= 0.9
    index.nprobe -= 1
    assert lowest() < 0.9


def test_a_higher_target_never_scans_fewer_lists(vectors, flat, held_out):
    index = filled("IVF64,Flat", vectors)
    probes = []
    for target in (0.5, 0.8, 0.95, 0.99, 1.0):
        tune(index, flat, held_out, target=target)
        probes.append(index.nprobe)
    assert probes == sorted(probes)
    assert probes[0] < probes[-1]


def test_codes_are_compared_in_full_so_that_similarities_are_exact(vectors, flat, held_out):
    index = filled("IVF16,PQ12x4fs", vectors)
    curve = tune(index, flat, held_out, target=0.95)
    assert curve.k_factor > 1
    similarities, rows = refined(index, flat, curve.k_factor).search(held_out.queries, 5)
    expected = np.einsum("qd,qkd->qk", held_out.queries, vectors[rows])
    np.testing.assert_allclose(similarities, expected, atol=1e-5)


def test_probes_by_hand_are_kept_and_measured(vectors, flat, held_out):
    index = filled("IVF64,Flat", vectors)
    curve = tune(index, flat, held_out, target=0.99, probes=2)
    assert (index.nprobe, curve.chosen.parameters) == (2, "nprobe=2")
    assert curve.chosen.recall < 0.99


def test_the_curve_rises_to_well_beyond_the_target(vectors, flat, held_out):
    curve = tune(filled("IVF64,Flat", vectors), flat, held_out, target=0.8)
    recalls = [point.recall for point in curve.points]
    assert recalls == sorted(recalls)
    assert recalls[-1] >= 0.99
    assert curve.chosen in curve.points
    assert all(point.latency_ms > 0 for point in curve.points)


def test_mates_are_found_by_their_label(vectors, flat, held_out):
    curve = tune(filled("IVF64,Flat", vectors), flat, held_out, target=0.99)
    first = held_out.truth[:, 0]
    expected = np.mean(first // PER_LABEL == held_out.rows // PER_LABEL)
    assert curve.exact_mate_at_1 == pytest.approx(expected)
    assert curve.points[-1].mate_at_1 == pytest.approx(expected, abs=0.03)


def test_without_labels_no_mates_are_counted(vectors, flat, held_out):
    unlabelled = HeldOut(held_out.rows, held_out.queries, held_out.truth)
    curve = tune(filled("IVF64,Flat", vectors), flat, unlabelled, target=0.8)
    assert (curve.exact_mate_at_1, curve.chosen.mate_at_1) == (None, None)


def test_an_exact_index_has_one_point_and_finds_all(flat, held_out):
    curve = tune(flat, flat, held_out, target=0.95)
    assert [(point.parameters, point.recall) for point in curve.points] == [("", 1.0)]
    assert curve.memory_bytes == ROWS * DIM * 4 + 45


@pytest.mark.parametrize(
    ("factory", "kept"),
    [("Flat", True), ("SQfp16", True), ("IVF4,Flat", True), ("IVF4,SQfp16", True), ("HNSW8", True),
     ("IVF4,SQ8", False), ("HNSW8,SQ8", False), ("IVF4,PQ4x4fs", False), ("PCA8,IVF4,Flat", False),
     ("IVF4,SQ8,RFlat", True)],
)  # fmt: skip
def test_what_keeps_vectors_is_not_compared_again(factory, kept, vectors):
    assert keeps_vectors(filled(factory, vectors[:400])) is kept


def test_finding_oneself_does_not_count():
    nearest = np.array([[4, 1, 2], [0, 3, 9], [7, 8, 9]])
    assert without_itself(nearest, np.array([4, 3, 5])).tolist() == [[1, 2], [0, 9], [7, 8]]


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF16,SQ8"])
def test_an_answer_that_is_as_similar_as_the_last_neighbour_is_found(factory, vectors):
    copied = np.repeat(vectors[::100], 100, axis=0)  # any ten of a hundred copies are right
    flat = filled("Flat", copied)
    rows = np.arange(0, ROWS, 50) + 49
    nearest = flat.search(copied[rows], 11)[1]
    held_out = HeldOut.of(rows, copied[rows], nearest, take=lambda wanted: copied[wanted])
    curve = tune(filled(factory, copied), flat, held_out, target=0.95)
    assert curve.chosen.recall == 1.0
    assert factory == "Flat" or "nprobe=1," in f"{curve.chosen.parameters},"


def test_an_answer_that_is_less_similar_than_the_last_neighbour_is_missed(vectors, flat):
    copied = np.repeat(vectors[::20], 5, axis=0)
    exact = filled("Flat", copied)
    rows = np.arange(0, len(copied), 5)
    nearest = exact.search(copied[rows], 11)[1]
    held_out = HeldOut.of(rows, copied[rows], nearest, take=lambda wanted: copied[wanted])
    farther = exact.search(copied[rows], 40)[1][:, -11:]
    assert held_out.recall(farther) == 0
    assert held_out.recall(np.full((len(rows), 11), -1)) == 0

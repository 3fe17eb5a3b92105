"""What the planner measures of an index: its promises hold for queries and filters that it has not seen."""

import faiss
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.embedding.imported import find_vectors
from dml.retrieval.attributes import Matches
from dml.retrieval.build import build_index
from dml.retrieval.bundle import open_bundle
from dml.retrieval.execution import FilteredLists, nearest_among
from dml.retrieval.lists import InvertedLists
from dml.retrieval.plan import choose_plan
from dml.retrieval.plan_calibration import calibrate_plans, measure_recall
from dml.retrieval.recall_table import Recall
from dml.retrieval.shards import open_index
from tests.retrieval.calibrations import costs, table

ROWS, DIM, K = 8_000, 16, 10
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)


class Vectors:
    def __init__(self, vectors):
        self.vectors, self.flat = vectors, faiss.IndexFlatIP(DIM)
        self.flat.add(vectors)

    def take(self, rows):
        return self.vectors[rows]

    def search_among(self, queries, k, rows):
        return self.flat.search(queries, k, params=faiss.SearchParameters(sel=faiss.IDSelectorArray(rows)))


def drawn(rows, seed):
    """Clusters of decaying spectrum, of unit length."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, DIM + 1, dtype=np.float32) ** -0.5
    centers = np.random.default_rng(0).standard_normal((200, DIM), dtype=np.float32) * spectrum
    vectors = centers[rng.integers(0, 200, rows)] + 0.7 * spectrum * rng.standard_normal(
        (rows, DIM), dtype=np.float32
    )
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def index_of(factory, vectors):
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index


@pytest.fixture(scope="module")
def vectors():
    return Vectors(drawn(ROWS, seed=1))


@pytest.fixture(scope="module", params=["IVF64,Flat", "PCA12,IVF64,SQ8"])
def calibrated(request, vectors):
    index = index_of(request.param, vectors.vectors)
    return index, measure_recall(index, vectors, target=0.95, num_queries=128, selectivities=SHARES)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.04])
@pytest.mark.parametrize("kind", ["random", "inside", "outside"])
def test_the_recall_of_new_queries_is_what_was_promised(calibrated, vectors, share, kind):
    index, table = calibrated
    queries, rng = drawn(200, seed=2), np.random.default_rng(3)
    anchor = drawn(1, seed=4)[0]
    order = rng.permutation(ROWS) if kind == "random" else np.argsort(-(vectors.vectors @ anchor))
    matches = Matches.of_rows(np.sort(order[: int(share * ROWS)]), ROWS)
    if kind != "random":  # the half of the queries that is nearer to the region, or the other
        by_distance = np.argsort(-(queries @ anchor))
        queries = queries[by_distance[:100] if kind == "inside" else by_distance[100:]]
    lists = FilteredLists(InvertedLists.of(index), vectors, table, costs())
    plan = choose_plan(matches.count, ROWS, K, costs(), table, built=Recall(value=0.9, basis="built"))
    assert plan.kind == "index_filtered"
    (_, rows), answered = lists.search(queries, K, matches, plan)
    truth = nearest_among(vectors, queries, matches.rows(), K)
    recalls = [
        np.isin(true, found).mean() if by_index else 1.0
        for true, found, by_index in zip(truth, rows, answered, strict=True)
    ]
    assert np.mean(recalls) >= 0.94, "the target, less what chance takes from 100 queries"
    assert kind == "outside" or answered.mean() > 0.5
    assert np.isin(rows[answered], matches.rows()).all()


@pytest.mark.parametrize(("match_us", "is_answered"), [(1.2, True), (1.4, False)])
def test_lists_are_scanned_on_while_the_others_cost_less_than_comparing_with_all(
    vectors, match_us, is_answered
):
    all_lists = table(64, {1.0: 64, 0.01: 64}, margins={1.0: 2.0, 0.01: 2.0})
    fitted, matches = costs(match_us=match_us), Matches.of_rows(np.arange(0, ROWS, 10), ROWS)
    lists = FilteredLists(
        InvertedLists.of(index_of("IVF64,Flat", vectors.vectors)), vectors, all_lists, fitted
    )
    plan = choose_plan(matches.count, ROWS, K, costs(), all_lists, built=Recall(value=0.9, basis="built"))
    # 800 match, and the first lists have some 200 of these: the others cost some 600 match_us of 801.
    _, answered = lists.search(drawn(20, seed=2), K, matches, plan)
    assert answered.all() if is_answered else not answered.any()


def test_a_table_says_what_was_measured(calibrated):
    _, table = calibrated
    assert {(cell.selectivity, cell.correlation) for cell in table.cells} == {
        (share, kind)
        for share in SHARES
        for kind in ("random", "inside", "outside")
        if share < 1 or kind == "random"
    }
    assert all(cell.low <= cell.recall <= cell.high for cell in table.cells)
    assert all(cell.recall >= table.target for cell in table.cells)
    assert [step.probes for step in table.steps] == sorted(step.probes for step in table.steps)


def test_codes_that_lose_neighbours_are_not_promised(vectors):
    index = index_of("IVF64,PQ2x4fs", vectors.vectors)
    table = measure_recall(index, vectors, target=0.95, num_queries=64, selectivities=(1.0, 0.1))
    assert table is None or table.candidates > 4


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF64,Flat"])
def test_what_needs_no_measuring_is_not_measured(vectors, factory):
    fewest = 1 if factory != "IVF64,Flat" else ROWS + 1
    assert calibrate_plans(index_of(factory, vectors.vectors), vectors, fewest_rows=fewest) == (
        None,
        None,
    )


def test_costs_grow_with_what_is_done(vectors):
    table, fitted = calibrate_plans(index_of("IVF64,Flat", vectors.vectors), vectors, fewest_rows=1)
    assert fitted.processor
    assert fitted.scan(4000) > fitted.scan(10) > 0
    assert fitted.scan(4000, is_range=True) > fitted.scan(10, is_range=True) > 0
    assert fitted.index(lists=64, ids=8000, matches=8000) > fitted.index(lists=1, ids=125, matches=10) > 0
    assert table.num_lists == 64


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("built")
    np.save(tmp_path / "vectors.npy", drawn(20_000, seed=5))
    numbers = {"number": np.random.default_rng(6).integers(0, 100, 20_000), "place": np.arange(20_000)}
    parquet.write_table(pa.table(numbers), tmp_path / "attributes.parquet")
    store = str(tmp_path / "store")
    import_vectors(store, "drawn", tmp_path / "vectors.npy", attributes=tmp_path / "attributes.parquet")
    return build_index(store, "drawn", find_vectors(store, "drawn"), IndexConfig(factory="IVF128,Flat"))


def test_an_index_is_built_with_what_its_planner_needs(built):
    index = open_index(built)
    embedder = built.embeddings.embedder.fingerprint
    result = index.search(drawn(20, seed=7), K, embedder=embedder, where="number < 50")
    plan = result.plan
    assert plan.kind == ("exact" if plan.scan_us <= plan.index_us else "index_filtered"), "both were timed"
    assert plan.recall.value >= 0.99
    assert plan.timed_elsewhere is None
    assert all(answer.attributes["number"] < 50 for answers in result.answers for answer in answers)


def test_a_filter_of_rows_in_a_long_range_costs_what_a_range_costs(built):
    index, costs = open_index(built), open_bundle(built).calibration.costs
    embedder = built.embeddings.embedder.fingerprint

    def scan_us(where):
        return index.search(drawn(1, seed=7), K, embedder=embedder, where=where).plan.scan_us

    assert scan_us("place >= 9000") == costs.scan(11_000, is_range=True)
    assert scan_us("place >= 19000") == costs.scan(1_000), "a short one is compared row by row"
    assert scan_us("place >= 9000 and place != 9500") == costs.scan(10_999)

"""A pass in blocks, here or on Ray's workers, gives what one pass gives."""

from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
import torch

from dml.cluster import ray_session
from dml.config import EvaluationConfig
from dml.errors import InvalidData
from dml.evaluation.all_pairs import blocks_of_equal_area, query_values, roc_of_rows, workers_for
from dml.evaluation.protocol import measure
from dml.evaluation.query_gallery import Rows
from dml.metrics.pair_counts import count_pairs, levels_for
from dml.metrics.ranking import Items
from dml.metrics.retrieval import joined, query_metrics
from dml.metrics.verification import roc_of_all_pairs, roc_of_counts
from tests.embedding.parts import unit_vectors

CONFIGS = {
    "all": EvaluationConfig(precision_at=(5,), map_at=(5,), macro=True, false_accept_rates=(0.1,)),
    "query and gallery": EvaluationConfig(
        role_attribute="role", recall_at=(1, 100), slices=("camera",), nmi=False
    ),
    "cameras": EvaluationConfig(same_camera_attribute="camera", full_map=True, nmi=False),
}


def split(case: int) -> tuple[np.ndarray, Rows]:
    """Uneven classes, some alone, duplicates, and attributes that are missing here and there."""
    random = np.random.default_rng(case)
    labels = np.sort(random.integers(0, 60, size=211))
    vectors = unit_vectors(len(labels), 8, case)
    vectors[50:60] = vectors[40:50]
    roles = random.choice(["query", "gallery", None], size=len(labels), p=[0.3, 0.6, 0.1]).tolist()
    cameras = random.choice(["a", "b", None], size=len(labels)).tolist()
    return vectors, Rows(labels, {"role": roles, "camera": cameras})


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("pairs_per_block", [1, 5_000])
def test_blocks_of_queries_give_the_values_of_one_pass(name, pairs_per_block):
    vectors, rows = split(1)
    embeddings, done = torch.from_numpy(vectors), []
    whole = query_values(embeddings, rows, CONFIGS[name])
    actual = query_values(
        embeddings,
        rows,
        CONFIGS[name],
        pairs_per_block=pairs_per_block,
        progress=lambda *at: done.append(at),
    )
    assert actual.values.keys() == whole.values.keys()
    assert all(torch.equal(actual.values[metric], whole.values[metric]) for metric in whole.values)
    assert torch.equal(actual.rows, whole.rows)
    assert len(done) > 1
    assert done == [(n, len(done)) for n in range(1, len(done) + 1)]


@pytest.mark.parametrize("pairs_per_block", [1_000, 5_000])
def test_blocks_of_pairs_give_the_curve_of_one_pass(pairs_per_block):
    vectors, rows = split(1)
    embeddings, done = torch.from_numpy(vectors).double(), []  # float32 rounds by the shape of a product
    whole = roc_of_rows(embeddings, rows)
    roc = roc_of_rows(embeddings, rows, pairs_per_block=pairs_per_block, progress=lambda *at: done.append(at))
    assert torch.equal(roc.genuine, whole.genuine)
    assert torch.equal(roc.impostor, whole.impostor)
    assert roc.at_false_accept_rate(0.1) == whole.at_false_accept_rate(0.1)
    assert len(done) > 1
    assert done == [(n, len(done)) for n in range(1, len(done) + 1)]


@pytest.mark.parametrize("sizes", [[211], [1, 0, 210], [100, 11, 100]])
def test_metrics_of_blocks_joined_are_those_of_all_queries(sizes):
    vectors, rows = split(2)
    items = Items(torch.from_numpy(vectors), torch.from_numpy(rows.labels), torch.arange(211))
    whole = query_metrics(items, recall_at=(1, 3))
    ends = np.cumsum([0, *sizes])
    parts = [
        query_metrics(items.select(slice(start, stop)), items, recall_at=(1, 3))
        for start, stop in pairwise(ends)
    ]
    actual = joined(parts, sizes)
    assert actual.values.keys() == whole.values.keys()
    assert all(torch.equal(actual.values[name], whole.values[name]) for name in whole.values)
    assert torch.equal(actual.rows, whole.rows)
    assert torch.equal(actual.labels, whole.labels)
    assert actual.num_without_positives == whole.num_without_positives > 0


def test_counts_of_blocks_add_up_to_all_pairs():
    vectors, rows = split(3)
    items = Items(torch.from_numpy(vectors), torch.from_numpy(rows.labels))
    levels = levels_for(items, (0.1,))
    blocks = [slice(start, min(start + 13, 211)) for start in range(0, 211, 13)]
    counts = reduce(add, (count_pairs(items, levels, block) for block in blocks))
    whole = roc_of_all_pairs(items.embeddings, items.labels)
    roc = roc_of_counts(counts, levels, items)
    assert torch.equal(roc.genuine, whole.genuine)
    assert torch.equal(roc.impostor, whole.impostor)
    assert int(whole.genuine[-1] + whole.impostor[-1]) == 211 * 210 // 2


def test_blocks_of_equal_area_have_equally_many_pairs():
    blocks = blocks_of_equal_area(10_000, 8)
    assert (blocks[0].start, blocks[-1].stop) == (0, 10_000)
    pairs = [sum(10_000 - 1 - row for row in range(block.start, block.stop)) for block in blocks]
    assert max(pairs) < 1.01 * min(pairs)


def test_workers_are_called_for_where_rows_are_many_and_a_cluster_is_there(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert workers_for(10**7, num_gpus=0) == 1, "one process uses all cores already"
    assert workers_for(10**7, num_gpus=4) == 4
    assert workers_for(60_502, num_gpus=4) == 1


@pytest.fixture
def two_nodes(monkeypatch):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield
    finally:
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_is_there_is_used_where_rows_are_many(two_nodes):
    vectors, rows = split(7)
    assert workers_for(len(vectors)) == 1
    num_workers = workers_for(len(vectors), pairs_here=40_000)
    assert num_workers == 2, "a worker per core of both nodes"
    done = []
    evaluation = measure(
        vectors, rows, CONFIGS["all"], num_workers=num_workers, progress=lambda *at: done.append(at)
    )
    assert (8, 8) in done
    assert evaluation == measure(vectors, rows, CONFIGS["all"], num_workers=1)


@pytest.fixture(scope="module")
def two_cpus():
    """A session on this machine for the tests that follow; the one above has a cluster of its own."""
    with ray_session(num_cpus=2):
        yield


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_workers_give_the_numbers_of_one_process(name, two_cpus):
    vectors, rows = split(4)
    done = []
    evaluation = measure(vectors, rows, CONFIGS[name], num_workers=2, progress=lambda *at: done.append(at))
    assert evaluation == measure(vectors, rows, CONFIGS[name], num_workers=1)
    assert (8, 8) in done, "four blocks for each worker"


@pytest.mark.ray
@pytest.mark.slow
def test_workers_share_out_queries_and_pairs_exactly(two_cpus):
    vectors, rows = split(5)
    embeddings = torch.from_numpy(vectors)
    here, apart = (query_values(embeddings, rows, CONFIGS["all"], num_workers=n) for n in (1, 2))
    assert all(torch.equal(here.values[name], apart.values[name]) for name in here.values)
    assert torch.equal(here.rows, apart.rows)
    one, other = (roc_of_rows(embeddings, rows, num_workers=n) for n in (1, 2))
    assert torch.equal(one.genuine, other.genuine)
    assert torch.equal(one.impostor, other.impostor)


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_worker_refuses_is_raised_as_it_is(two_cpus):
    vectors, rows = split(6)
    alone = Rows(rows.labels, {"role": ["query"] * 211})
    with pytest.raises(InvalidData, match="must be 'query' for some rows"):
        measure(vectors, alone, CONFIGS["query and gallery"], num_workers=2)
    vectors[7] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        measure(vectors, rows, CONFIGS["all"], num_workers=2)

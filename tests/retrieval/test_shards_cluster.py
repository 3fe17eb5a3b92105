"""Shards on a cluster of two nodes: built by tasks, held by actors, answered in full or not at all."""

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dml import storage
from dml.cluster import RemoteObjects, ray_session
from dml.config import IndexConfig
from dml.data.forgotten import add_forgotten
from dml.errors import CorruptArtifact, ForgottenMeanwhile, IncompatibleArtifact, InvalidSetting
from dml.integrity import check_store
from dml.lineage import list_artifacts, remove, remove_named, remove_with_descendants, unneeded
from dml.retrieval.build import build_index
from dml.retrieval.bundle import open_bundle, read_calibration
from dml.retrieval.export import export_index
from dml.retrieval.index import find_index, list_versions, publish_index, rollback_index
from dml.retrieval.shards import open_in_cluster, open_index
from dml.serving.searcher import Searcher
from flows.verify import repaired
from tests.embedding.parts import ROWS, make_dataset, make_package, table_of, unit_vectors
from tests.retrieval.test_shards import search, with_twins

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> "Iterator[Cluster]":
    """The open session of a cluster of two nodes on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        # A local session before this one switched this process to tokens; the nodes then ask for them too.
        patch.setenv("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "disabled"))
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args=node)
        nodes.add_node(**{**node, "include_dashboard": None})
        nodes.wait_for_nodes(60)
        patch.setenv("RAY_ADDRESS", nodes.address)
        try:
            with ray_session():
                yield nodes
        finally:
            nodes.shutdown()


@pytest.fixture(scope="module")
def table(store, package, dataset):
    return table_of(store, package, dataset, with_twins(23))


@pytest.fixture(scope="module")
def single(store, table):
    return open_index(build_index(store, "one", table, IndexConfig()))


@pytest.fixture(scope="module")
def ref(store, table, cluster):
    return build_index(store, "spread", table, IndexConfig(shards=3))


@pytest.fixture(scope="module")
def held(ref):
    index = open_in_cluster(ref)
    yield index
    index.close()


def actors() -> list[dict[str, object]]:
    from ray._private import state

    return [actor for actor in state.actors().values() if actor["State"] == "ALIVE"]


class NodeOfProcess:
    def node(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())


def node_of_process(_: int) -> NodeOfProcess:
    return NodeOfProcess()


def test_the_nodes_hold_objects_in_turn(cluster):
    objects = RemoteObjects(node_of_process, range(4))
    nodes = objects.call("node")
    objects.close()
    assert nodes[:2] * 2 == nodes
    assert len(set(nodes)) == 2


def test_shards_on_two_nodes_answer_as_the_single_index_bit_for_bit(single, held):
    assert len({actor["Address"]["NodeID"] for actor in actors()}) == 2
    vectors = with_twins(23)[:8]
    for where in (None, "shelf in ('top', 'bottom') and not sold", "year > 2100"):
        found, expected = search(held, vectors, 7, where=where), search(single, vectors, 7, where=where)
        assert found.answers == expected.answers
    ids = [answers[0].id for answers in search(single, vectors, 1).answers]
    assert (held.vectors_of(ids) == single.vectors_of(ids)).all()


def test_a_lost_process_is_started_again_and_the_query_answered(single, held):
    vectors = with_twins(23)[:3]
    os.kill(int(actors()[0]["Pid"]), signal.SIGKILL)
    assert search(held, vectors, 5).answers == search(single, vectors, 5).answers


def test_a_shard_that_cannot_be_opened_again_refuses_the_query(store, table, cluster):
    ref = build_index(store, "broken", table, IndexConfig(shards=2))
    index = open_in_cluster(ref)
    with open(f"{ref.shards[1].uri}/items.arrow", "r+b") as file:
        file.truncate(100)
    for actor in actors():
        os.kill(int(actor["Pid"]), signal.SIGKILL)
    with pytest.raises(CorruptArtifact, match="as it was published"):
        search(index, with_twins(23)[:1], 5)
    index.close()


def test_shards_are_built_by_tasks_published_verified_and_resumed(store, table, single, cluster):
    config = IndexConfig(shards=3)
    ref = build_index(store, "resumed", table, config)
    publish_index(store, ref)
    assert sum(shard.rows for shard in ref.shards) == ref.rows == ROWS
    assert find_index(store, "resumed") == ref
    assert read_calibration(ref).operating_curve.chosen.recall == min(shard.recall for shard in ref.shards)
    with pytest.raises(IncompatibleArtifact, match="has 3 shards"):
        open_bundle(ref)
    vectors = with_twins(23)[:4]
    opened = open_index(find_index(store, "resumed"))
    assert search(opened, vectors, 9).answers == search(single, vectors, 9).answers
    storage.remove(ref.uri)
    storage.remove(ref.shards[1].uri)
    kept = {shard.uri: storage.read_manifest(shard.uri)["created"] for shard in ref.shards[::2]}
    assert build_index(store, "resumed", table, config) == ref
    assert {uri: storage.read_manifest(uri)["created"] for uri in kept} == kept, "not built again"


def test_items_held_elsewhere_are_not_read_here(held):
    with pytest.raises(InvalidSetting, match="a cluster holds them"):
        held.items  # noqa: B018


def test_an_index_of_one_bundle_is_not_held_in_a_cluster(single, cluster):
    with pytest.raises(InvalidSetting, match="must have shards"):
        open_in_cluster(single.ref)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def shop(tmp_path, cluster):
    """A store of its own with an index in two shards, its dataset, table and package."""
    store = str(tmp_path / "store")
    dataset = make_dataset(tmp_path / "images", store, rows=60)
    table = table_of(store, make_package(store), dataset, unit_vectors(60, 16, 4))
    ref = build_index(store, "shop", table, IndexConfig(shards=2))
    publish_index(store, ref)
    return store, ref


def test_a_damaged_or_missing_shard_is_found_and_made_again(shop):
    store, ref = shop
    flip(Path(ref.shards[0].uri) / "items.arrow")
    storage.remove(ref.shards[1].uri)
    damaged = {checked.kind: checked for checked in check_store(store) if checked.damaged}
    assert damaged["shard"].damaged == ["items.arrow"]
    assert damaged["index"].damaged == [f"shards/{ref.shards[1].version}"]
    with pytest.raises(CorruptArtifact):
        open_index(ref)
    assert set(repaired(store, list(damaged.values())).values()) == {"made again"}
    assert not any(checked.damaged for checked in check_store(store))
    assert find_index(store, "shop") == ref
    open_index(ref).check()


def test_an_index_rolls_back_to_its_shards_and_what_nothing_needs_is_removed(shop):
    store, ref = shop
    other = build_index(store, "shop", ref.embeddings, IndexConfig(shards=2, recall_queries=5))
    publish_index(store, other)
    file = Path(ref.shards[1].uri) / "items.arrow"
    flip(file)
    with pytest.raises(CorruptArtifact):
        rollback_index(store, "shop")
    flip(file)
    assert rollback_index(store, "shop") == ref
    package = ref.embeddings.embedder.model_dump(mode="json")
    later = datetime.now(UTC) + timedelta(days=2)
    removed = remove(unneeded(store, [package], keep=1, now=later))
    assert {each.uri for each in removed} == {other.uri, *(shard.uri for shard in other.shards)}
    open_index(find_index(store, "shop")).check()
    remove_named(store, "index", "shop")
    assert not [a for a in list_artifacts(store) if a.kind in ("index", "shard")]
    assert not Path(store, "indexes", "shop").exists()


def test_a_build_of_what_was_forgotten_takes_back_no_shard_of_another_version(shop):
    store, ref = shop
    (item,) = open_index(ref).items["id"][:1].to_pylist()
    add_forgotten(store, ref.embeddings.items.name, [item])
    with pytest.raises(ForgottenMeanwhile):
        build_index(store, "shop", ref.embeddings, IndexConfig(shards=2, latency_ms=7.0))
    assert [version.ref for version in list_versions(store)] == [ref]
    open_index(ref).check()


def test_shards_go_with_what_is_forgotten(shop):
    store, ref = shop
    remove_with_descendants(store, [ref.embeddings.items])
    assert not [a for a in list_artifacts(store) if a.kind in ("index", "shard", "dataset")]


def test_a_searcher_opens_shards_alike(shop):
    store, ref = shop
    searcher = Searcher.open(store, "shop")
    (found,) = searcher.search_ids([open_index(ref).items["id"][7].as_py()], k=3, where="shelf = 'top'")
    assert len(found.answers) == 3
    assert "in 2 shards" in found.report().plan
    held = Searcher.open(store, "shop", in_cluster=True)
    (same,) = held.search_ids([open_index(ref).items["id"][7].as_py()], k=3, where="shelf = 'top'")
    assert same.answers == found.answers
    assert not held.refresh()
    with pytest.raises(InvalidSetting, match="has 2 shards"):
        export_index(ref, "faiss", Path(store) / "out")
    assert export_index(ref, "npy", Path(store) / "out").rows == 60


def test_the_shards_of_a_lost_node_move_to_another_and_the_query_is_answered(single, held, cluster):
    vectors = with_twins(23)[:3]
    expected = search(single, vectors, 5).answers
    assert search(held, vectors, 5).answers == expected
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    assert search(held, vectors, 5).answers == expected
    deadline = time.monotonic() + 200
    while len({actor["Address"]["NodeID"] for actor in actors()}) > 1:
        assert time.monotonic() < deadline, "an actor is still said to be on the lost node"
        time.sleep(0.5)

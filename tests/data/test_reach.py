"""A machine that does not see the source or the store ends an ingest, instead of halving the dataset."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dml.cluster import ray_session
from dml.config import IngestConfig
from dml.data.fragment import make_problem
from dml.data.ingest import ingest
from dml.data.reach import find_readable_image, require_missing_locally, require_reach
from dml.data.sources.detect import open_source
from dml.data.sources.sample import Sample
from dml.errors import MissingArtifact
from tests.data.pictures import class_folders, picture, write

NODE = "node 10.0.0.7"


@pytest.fixture
def source(tmp_path):
    return class_folders(tmp_path / "source")


@pytest.fixture
def check(source, tmp_path):
    """The check of a worker, with what the ingest's own machine saw before."""
    opened = open_source(str(source))
    image = find_readable_image(opened, opened.list().samples)
    staged = tmp_path / "staged"
    staged.mkdir()
    return lambda: require_reach(opened, image, str(staged), uri=str(source), node=NODE)


def test_a_machine_that_sees_both_is_checked_once(check, source, tmp_path):
    check()
    shutil.rmtree(source)
    check()


def test_a_machine_without_the_source_is_named(check, source):
    shutil.rmtree(source)
    with pytest.raises(
        MissingArtifact, match=rf"{NODE} cannot read class0/0.png of {source}.*Mount it there"
    ):
        check()


def test_a_machine_with_an_empty_folder_in_place_of_the_source_is_named(check, source):
    shutil.rmtree(source)
    source.mkdir()
    with pytest.raises(MissingArtifact, match=f"{NODE} cannot read"):
        check()


def test_a_machine_with_another_source_at_that_path_is_named(check, source):
    write(source, {"class0/0.png": picture(12345)})
    with pytest.raises(MissingArtifact, match=f"{NODE} has other bytes"):
        check()


def test_a_machine_without_the_stores_folder_is_named(check, tmp_path):
    (tmp_path / "staged").rmdir()
    with pytest.raises(MissingArtifact, match=f"share the store's folder; {NODE} has no"):
        check()


def test_images_that_cannot_be_read_anywhere_are_not_taken_as_readable(source):
    opened = open_source(str(source))
    missing = [Sample(str(number), f"class0/none{number}.png", "x") for number in range(3)]
    assert find_readable_image(opened, missing) is None
    good = opened.list().samples[-1]
    assert find_readable_image(opened, [*missing, good]).locator == good.locator


def test_an_image_that_one_machine_alone_misses_ends_the_ingest(source):
    opened = open_source(str(source))
    missed = make_problem(opened.list().samples[0], "missing file", "there is no file")
    with pytest.raises(MissingArtifact, match=f"{NODE} has no class0/0.png"):
        require_missing_locally(opened, [missed], uri=str(source), node=NODE)
    (source / "class0" / "0.png").unlink()
    require_missing_locally(opened, [missed], uri=str(source), node=NODE)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0,
    reason="needs a mount namespace, to hide a folder from a node",
)
def test_two_nodes_of_which_one_does_not_see_the_source_publish_nothing(source, tmp_path, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    command = Path(sys.executable).with_name("ray")
    start = f"exec {command} start --address={cluster.address} --num-cpus=1 --block"
    node = subprocess.Popen(["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {source} && {start}"])
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        with ray_session():
            deadline = time.monotonic() + 200
            while sum(node["Alive"] for node in ray.nodes()) < 2:
                assert time.monotonic() < deadline, "the second node never came"
                time.sleep(0.2)
            config = IngestConfig(name="d", source=str(source), rows_per_fragment=1, num_workers=2)
            with pytest.raises(MissingArtifact, match=r"node .* cannot read class0/0.png"):
                ingest(config, str(tmp_path / "store"))
        assert not list((tmp_path / "store" / "datasets" / "d").iterdir())
    finally:
        node.terminate()
        node.wait()
        cluster.shutdown()

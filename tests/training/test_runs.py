"""A training run in the store: its result is read again, and one process at a time works at it."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dml import storage
from dml.config import IngestConfig
from dml.data.ingest import ingest
from dml.errors import CorruptArtifact
from dml.presets import experiment
from dml.training.loop import run_identity
from dml.training.ray_trainer import train

CONFIG = experiment("smoke").overridden(["training.num_steps=2", "training.log_every_steps=1"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    store = str(tmp_path_factory.mktemp("store"))
    return ingest(IngestConfig(name="tiny", source="glyphs:classes=20,per_class=4", num_workers=1), store)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"run": 3}'])
def test_a_damaged_result_is_named_with_what_to_do(dataset, tmp_path, content):
    result = storage.join(str(tmp_path), "runs", run_identity(CONFIG, dataset), "result.json")
    storage.write_bytes(result, content)
    with pytest.raises(CorruptArtifact, match=r"result\.json must .*[Rr]emove it|result\.json must .* again"):
        train(CONFIG, dataset, str(tmp_path))


@pytest.mark.slow
def test_of_two_that_train_the_same_run_at_once_one_waits_and_finds_it_done(dataset, tmp_path):
    steps = []
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(train, CONFIG, dataset, str(tmp_path), lambda progress: steps.append(progress.step))
            for _ in range(2)
        ]
    assert runs[0].result() == runs[1].result()
    assert sorted(steps) == [1, 2]

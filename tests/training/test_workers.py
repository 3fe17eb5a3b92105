"""A Ray Train worker group: the same model as one process, whatever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dml.cluster import ray_session
from dml.config import IngestConfig
from dml.data.ingest import ingest
from dml.errors import TrainingFailed
from dml.presets import experiment
from dml.training.ray_trainer import train

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

# A gentle SGD: Adam would blow gradients of rounding size up to full steps, and a rough one their effects. A
# smooth loss: a mined tuple that rounding lets in or out moves a curve by more than rounding.
SETTINGS = [
    "training.num_steps=20",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=5",
    "optimizer.kind=sgd",
    "optimizer.learning_rate=0.0001",
    'loss={"kind":"contrastive"}',
]


@pytest.fixture(scope="module", autouse=True)
def one_cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how soon an end is noticed; else 2 s
        with ray_session(num_cpus=4):
            yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    store = str(tmp_path_factory.mktemp("store"))
    return ingest(IngestConfig(name="tiny", source="glyphs:classes=24,per_class=6", num_workers=1), store)


class Recorder:
    """Writes each step's loss to a file; kills a process once, after a step: its own, or the victim."""

    def __init__(self, folder: Path, kill_at: int | None = None, victim: int | None = None) -> None:
        self.folder, self.kill_at, self.victim = folder, kill_at, victim

    def __call__(self, progress) -> None:
        with (self.folder / "losses.txt").open("a") as file:
            file.write(f"{progress.step} {progress.loss!r}\n")
        marker = self.folder / "killed"
        if progress.step == self.kill_at and not marker.exists():
            marker.touch()
            os.kill(self.victim or os.getpid(), signal.SIGKILL)
            time.sleep(60)  # takes no step more until it is ended with its driver

    def losses(self) -> dict[int, float]:
        lines = (self.folder / "losses.txt").read_text().split("\n")
        return {int(step): float(loss) for step, loss in (line.split() for line in lines if line)}

    def steps(self) -> list[int]:
        return [int(line.split()[0]) for line in (self.folder / "losses.txt").read_text().splitlines()]


def run(dataset, folder: Path, num_workers: int, *settings: str, kill_at=None, victim=None):
    folder.mkdir(exist_ok=True)
    recorder = Recorder(folder, kill_at, victim)
    config = experiment("smoke").overridden([*SETTINGS, *settings, f"training.num_workers={num_workers}"])
    return train(config, dataset, str(folder), recorder), recorder


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    """Number of workers to the result of a run that nothing disturbs, and its recorder."""
    return {workers: run(dataset, tmp_path_factory.mktemp("undisturbed"), workers) for workers in (1, 2)}


def assert_same_weights(result, expected):
    weights, right = (load_file(f"{each.package.uri}/weights.safetensors") for each in (result, expected))
    torch.testing.assert_close(weights, right, rtol=1e-4, atol=1e-5)


def test_two_workers_give_the_loss_curve_of_one(undisturbed):
    (_, one), (_, two) = undisturbed[1], undisturbed[2]
    assert two.losses().keys() == set(range(1, 21))
    for step, value in one.losses().items():
        assert two.losses()[step] == pytest.approx(value, rel=1e-4, abs=1e-4), f"step {step}"


def test_a_killed_worker_restarts_by_itself_and_ends_as_the_undisturbed_run(dataset, undisturbed, tmp_path):
    disturbed, recorder = run(dataset, tmp_path, 2, kill_at=12)
    steps = recorder.steps()
    assert steps.count(20) == 1
    first_again = next(step for before, step in pairwise(steps) if step <= before)
    assert first_again <= 11, "it goes on from a checkpoint at or before the kill, never after"
    assert_same_weights(disturbed, undisturbed[2][0])


def test_a_damaged_checkpoint_is_left_out_and_an_unfinished_one_removed(dataset, undisturbed, tmp_path):
    with pytest.raises(RuntimeError, match="max_failures"):
        run(dataset, tmp_path, 2, "training.max_failures=0", kill_at=13)
    (folder,) = (tmp_path / "runs").glob("[!.]*")  # beside its lock
    newest = sorted(folder.glob("checkpoint_*-*"))[-1]
    content = bytearray((newest / "encoder.safetensors").read_bytes())
    content[-1] ^= 0b11
    (newest / "encoder.safetensors").write_bytes(content)
    unfinished = folder / "checkpoint_9999-12-31_00-00-00.000000"
    unfinished.mkdir()
    (unfinished / "state.json").touch()
    resumed, recorder = run(dataset, tmp_path, 2, "training.max_failures=0")
    steps = recorder.steps()
    assert steps[steps.index(13) + 1] == 6, "the checkpoint after step 10 was damaged, that after 5 was not"
    assert steps[-1] == 20
    assert not unfinished.exists()
    assert_same_weights(resumed, undisturbed[2][0])


def test_two_workers_with_half_of_the_proxies_each_are_killed_and_end_as_one_with_all(dataset, tmp_path):
    loss = {"kind": "cosface", "scale": 8, "sample_rate": 0.5}
    whole, one = run(dataset, tmp_path / "a", 1, f"loss={json.dumps(loss)}")
    setting = f"loss={json.dumps({**loss, 'sharded': True})}"
    halves, two = run(dataset, tmp_path / "b", 2, setting, kill_at=12)
    assert halves.run == whole.run, "how proxies are spread does not decide the model"
    assert max(Counter(two.steps()).values()) == 2, "it was killed, and went on from a checkpoint"
    for step, value in one.losses().items():
        assert two.losses()[step] == pytest.approx(value, rel=1e-4, abs=1e-4), f"step {step}"


def test_a_loss_that_is_no_number_is_reported_once_and_not_retried(dataset, tmp_path):
    with pytest.raises(TrainingFailed, match="learning rate"):
        run(dataset, tmp_path / "nan", 2, "optimizer.learning_rate=1e30")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_run_continues_after_its_driver_was_killed(dataset, undisturbed, tmp_path, num_workers):
    """The whole process is gone without a chance to clean up; the next one finds the last checkpoint."""
    code = (
        "import os, sys; from pathlib import Path; "
        "from tests.training.test_workers import run; from dml.data.dataset import find_dataset; "
        "store, name, folder, workers = sys.argv[1:]; "
        "run(find_dataset(store, name), Path(folder), int(workers), kill_at=13, victim=os.getpid())"
    )
    store = dataset.uri.rsplit("/datasets/", 1)[0]
    command = [sys.executable, "-c", code, store, "tiny", str(tmp_path), str(num_workers)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    resumed, recorder = run(dataset, tmp_path, num_workers)
    steps = recorder.steps()
    goes_on_at = next(step for before, step in pairwise(steps) if step <= before)
    assert 1 < goes_on_at <= 14, "it goes on from a checkpoint, neither anew nor after the kill"
    assert steps[-1] == 20
    assert_same_weights(resumed, undisturbed[num_workers][0])

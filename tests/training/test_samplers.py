"""Every sampler in the trainer: resumed bitwise, and the same on two workers."""

import numpy as np
import pytest
import torch

from dml.config import IngestConfig
from dml.data.ingest import ingest
from dml.errors import InvalidSetting
from dml.presets import experiment
from dml.refs import DatasetRef
from dml.training.loop import Hooks, Worker, train_loop
from dml.training.spawn import run_ranks

NUM_STEPS = 10
SMALL = [
    f"training.num_steps={NUM_STEPS}",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=7",
    "encoder.backbone.width=8",
    # A gentle SGD: Adam would blow gradients of rounding size up to full steps.
    "optimizer.kind=sgd",
    "optimizer.learning_rate=0.001",
]
P_K = '"classes_per_batch":4,"samples_per_class":2'
# With n = 3 the checkpoint at step 7 lies within a round of the second pass, and a refresh follows.
SIMILAR = f'sampler={{"kind":"similar","refresh_every_steps":3,{P_K}}}'
SAMPLERS = {
    "similar by means": [SIMILAR, 'loss={"kind":"sup_con"}'],
    "similar by proxies": [SIMILAR, 'loss={"kind":"proxy_anchor"}'],
    "attribute": [f'sampler={{"kind":"attribute","attribute":"script",{P_K}}}', 'loss={"kind":"sup_con"}'],
    "a class on two workers": [
        'sampler={"classes_per_batch":5,"samples_per_class":2}',
        'loss={"kind":"sup_con"}',
    ],
    "shuffled": ['sampler={"kind":"shuffled","batch_size":8}', 'loss={"kind":"proxy_anchor"}'],
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    store = str(tmp_path_factory.mktemp("store"))
    return ingest(IngestConfig(name="tiny", source="glyphs:classes=40,per_class=4", num_workers=1), store)


class Stopped(Exception):
    pass


def losses_of(settings, dataset, worker, *, stop_at=None, save_to=None, restore=None) -> list[float]:
    """The losses of a run's steps, which also tell its batches: they differ from batch to batch."""
    losses = []

    def report(progress):
        losses.append(progress.loss)
        if progress.step == stop_at:
            raise Stopped

    def save(step, folder):
        if save_to is not None and folder is not None:
            for file in folder.iterdir():
                (save_to / file.name).write_bytes(file.read_bytes())

    try:
        config = experiment("smoke").overridden([*SMALL, *settings])
        hooks = Hooks(report=report, save=save, restore=[restore] if restore else ())
        train_loop(config, dataset, worker, hooks)
    except Stopped:
        pass
    return losses


@every_sampler
def test_a_run_stopped_between_checkpoints_continues_with_the_same_batches_bitwise(name, dataset, tmp_path):
    whole = losses_of(SAMPLERS[name], dataset, Worker())
    begun = losses_of(SAMPLERS[name], dataset, Worker(), stop_at=8, save_to=tmp_path)
    resumed = losses_of(SAMPLERS[name], dataset, Worker(), restore=tmp_path)
    assert begun == whole[:8]
    assert resumed == whole[7:]
    assert len(set(whole)) == NUM_STEPS


def test_similar_classes_are_drawn_as_soon_as_their_vectors_are_known(dataset):
    plain = losses_of([f"sampler={{{P_K}}}", 'loss={"kind":"sup_con"}'], dataset, Worker())
    similar = losses_of(SAMPLERS["similar by means"], dataset, Worker())
    assert similar[:5] == plain[:5], "the first pass, 20 classes, shows each for the first time"
    assert similar[6] != pytest.approx(plain[6], rel=1e-3)


def _losses_on_this_rank(dataset: DatasetRef) -> dict[str, list[float]]:
    worker = Worker(torch.distributed.get_rank(), torch.distributed.get_world_size())
    workers = f"training.num_workers={worker.world_size}"
    return {name: losses_of([*settings, workers], dataset, worker) for name, settings in SAMPLERS.items()}


@pytest.fixture(scope="module")
def losses_of_two(dataset) -> dict[str, list[float]]:
    return run_ranks(2, _losses_on_this_rank, dataset)[0]


@every_sampler
def test_two_workers_give_the_losses_of_one(name, dataset, losses_of_two):
    one = losses_of(SAMPLERS[name], dataset, Worker())
    np.testing.assert_allclose(losses_of_two[name], one, rtol=1e-4)


def test_an_attribute_that_the_dataset_does_not_have_is_refused(dataset):
    with pytest.raises(InvalidSetting, match=r"columns must be among .*'script'"):
        losses_of([f'sampler={{"kind":"attribute","attribute":"camera",{P_K}}}'], dataset, Worker())


def test_an_attribute_of_images_needs_a_policy_and_the_error_names_a_class_and_its_values(dataset):
    sampler = f'"kind":"attribute","attribute":"style",{P_K}'
    with pytest.raises(InvalidSetting, match=r"several, such as class 0 with .*Sans"):
        losses_of([f"sampler={{{sampler}}}"], dataset, Worker())
    split = losses_of([f'sampler={{{sampler},"several_values":"split"}}'], dataset, Worker())
    assert np.isfinite(split).all()

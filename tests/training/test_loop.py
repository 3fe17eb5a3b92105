"""Training is a pure function of its configuration: killed and resumed, it ends the same."""

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from dml import storage
from dml.config import IngestConfig
from dml.data.ingest import ingest
from dml.errors import InvalidData, InvalidSetting, TrainingFailed
from dml.models.package import load_package
from dml.presets import experiment
from dml.training import ray_trainer
from dml.training.loop import Hooks, Worker, run_identity, train_loop
from dml.training.spawn import run_ranks

RGB = '{"color":"RGB","resize":32,"crop":32}'
FAST = ["training.num_steps=12", "training.checkpoint_every_steps=4", "training.log_every_steps=1"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    store = str(tmp_path_factory.mktemp("store"))
    source = "glyphs:classes=24,per_class=6"
    return ingest(IngestConfig(name="tiny", source=source, num_workers=1), store)


def weights(package_uri: str) -> dict[str, torch.Tensor]:
    return load_file(f"{package_uri}/weights.safetensors")


class Killed(Exception):
    pass


def test_a_killed_run_resumes_and_ends_bitwise_as_the_undisturbed_one(dataset, tmp_path):
    config = experiment("smoke").overridden([*FAST, "augmentation.rotation=10"])
    undisturbed = ray_trainer.train(config, dataset, str(tmp_path / "a"))
    seen = []

    def die_at_seven(progress):
        seen.append(progress.step)
        if progress.step == 7:
            raise Killed

    with pytest.raises(Killed):
        ray_trainer.train(config, dataset, str(tmp_path / "b"), die_at_seven)
    again = []
    resumed = ray_trainer.train(config, dataset, str(tmp_path / "b"), lambda p: again.append(p.step))
    assert seen[-1] == 7
    assert again[0] == 5, "the checkpoint after step 4 is where it goes on"
    torch.testing.assert_close(weights(resumed.package.uri), weights(undisturbed.package.uri), rtol=0, atol=0)
    assert resumed.package.fingerprint == undisturbed.package.fingerprint


def test_a_finished_run_is_not_run_again(dataset, tmp_path):
    config = experiment("smoke").overridden(FAST)
    first = ray_trainer.train(config, dataset, str(tmp_path))
    steps = []
    assert ray_trainer.train(config, dataset, str(tmp_path), lambda p: steps.append(p.step)) == first
    assert steps == []


def test_the_package_names_its_dataset_and_the_encoder_before_training(dataset, tmp_path):
    config = experiment("smoke").overridden(FAST)
    package = ray_trainer.train(config, dataset, str(tmp_path)).package
    assert package.dataset == dataset
    assert package.initial.fingerprint != package.fingerprint
    assert load_package(package.initial.uri).ref.dim == config.encoder.dim


def test_training_lowers_the_loss(dataset, tmp_path):
    losses = []
    config = experiment("smoke").overridden(["training.num_steps=40", "training.log_every_steps=10"])
    ray_trainer.train(config, dataset, str(tmp_path), lambda p: losses.append(p.loss))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", ["contrastive", "triplet", "multi-similarity", "proxy-anchor"])
def test_every_loss_trains(kind, dataset, tmp_path):
    config = experiment("smoke").overridden([*FAST, f'loss={{"kind":"{kind}"}}'])
    losses = []
    ray_trainer.train(config, dataset, str(tmp_path), lambda p: losses.append(p.loss))
    assert all(torch.isfinite(torch.tensor(losses)))


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(dataset, tmp_path):
    config = experiment("smoke").overridden([*FAST, "optimizer.learning_rate=1e30", "optimizer.kind=sgd"])
    with pytest.raises(TrainingFailed, match=r"step \d+.*U\+.*learning rate"):
        ray_trainer.train(config, dataset, str(tmp_path))


def test_fewer_classes_than_a_batch_needs_is_refused(dataset, tmp_path):
    with pytest.raises(InvalidSetting, match="classes"):
        ray_trainer.train(
            experiment("smoke").overridden(["sampler.classes_per_batch=64"]), dataset, str(tmp_path)
        )


def test_a_dataset_without_a_train_split_is_refused(tmp_path):
    config = IngestConfig(
        name="all-test", source="glyphs:classes=4,per_class=2", split={"kind": "classes", "test_fraction": 1}
    )
    with pytest.raises(InvalidData, match="train"):
        ray_trainer.train(experiment("smoke"), ingest(config, str(tmp_path)), str(tmp_path))


def test_another_configuration_or_dataset_is_another_run(dataset):
    config = experiment("smoke")
    other = dataset.model_copy(update={"fingerprint": "0" * 64})
    assert run_identity(config, dataset) == run_identity(config, dataset)
    assert run_identity(config, dataset) != run_identity(config.overridden(["seed=1"]), dataset)
    assert run_identity(config, dataset) != run_identity(config, other)


def test_checkpoints_are_whole_and_only_the_last_two_stay(dataset, tmp_path):
    config = experiment("smoke").overridden(["training.num_steps=13", "training.checkpoint_every_steps=3"])
    ray_trainer.train(config, dataset, str(tmp_path))
    folder = str(tmp_path / "runs" / run_identity(config, dataset) / "checkpoints")
    assert storage.list_names(folder) == ["step-00000009", "step-00000012"]
    for name in storage.list_names(folder):
        storage.verify(f"{folder}/{name}")


def test_the_loop_alone_needs_no_store(dataset):
    config = experiment("smoke").overridden(FAST)
    reported = []
    hooks = Hooks(report=reported.append, save=lambda step, folder: None)
    outcome = train_loop(config, dataset, Worker(), hooks)
    assert [progress.step for progress in reported] == list(range(1, 13))
    assert 0 <= outcome.data_wait <= 1
    assert outcome.images_per_second > 0


# A gentle SGD: Adam would blow gradients of rounding size up to full steps.
CHUNKED = [*FAST, "training.chunk_rows=8", "optimizer.kind=sgd", "optimizer.learning_rate=0.01"]


def loss_curve(settings: list[str], dataset) -> list[float]:
    """Rank 0's losses; no other rank reports."""
    worker = Worker()
    if dist.is_initialized():
        worker = Worker(dist.get_rank(), dist.get_world_size())
    losses = []
    hooks = Hooks(report=lambda progress: losses.append(progress.loss), save=lambda step, folder: None)
    train_loop(experiment("smoke").overridden(settings), dataset, worker, hooks)
    return losses


def test_chunks_give_the_loss_curve_of_whole_steps_where_batch_norm_is_frozen(dataset):
    frozen = [*CHUNKED, "encoder.freeze_batch_norm=true", 'loss={"kind":"proxy-anchor"}']
    whole = loss_curve([*frozen, "training.chunk_rows=null"], dataset)
    assert loss_curve(frozen, dataset) == pytest.approx(whole, rel=1e-4)
    assert whole[-1] != pytest.approx(whole[0], rel=1e-4), "something was learnt"


def test_two_workers_in_chunks_give_the_loss_curve_of_one(dataset):
    ghost = [*CHUNKED, "training.ghost_batch_norm=true"]
    one = loss_curve(ghost, dataset)
    two = run_ranks(2, loss_curve, [*ghost, "training.num_workers=2"], dataset)
    assert two == [pytest.approx(one, rel=1e-4), []]


def test_chunks_of_a_backbone_that_trains_batch_norm_are_refused_when_it_is_built(dataset):
    mobile = ["preprocessing=" + RGB, 'encoder.backbone={"kind":"timm","name":"mobilenetv3_small_050"}']
    with pytest.raises(InvalidSetting, match="this encoder trains"):
        loss_curve([*CHUNKED, *mobile], dataset)

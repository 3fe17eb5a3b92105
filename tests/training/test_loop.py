"""Training is a pure function of its configuration: killed and resumed, it ends the same."""

import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
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
from dml.training.checkpoint import verify_checkpoint
from dml.training.initial import initial_encoder
from dml.training.loop import Hooks, run_identity, train_loop
from dml.training.spawn import run_ranks
from dml.training.train_data import require_trainable
from dml.training.worker import Worker
from tests.data.pictures import class_folders

RGB = '{"color":"RGB","resize":32,"crop":32}'
ONE_THREAD = "training.threads_per_worker=1"  # two wait for each other where the machine is busy
FAST = [
    "training.num_steps=12",
    "training.checkpoint_every_steps=4",
    "training.log_every_steps=1",
    ONE_THREAD,
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    store = str(tmp_path_factory.mktemp("store"))
    source = "glyphs:classes=24,per_class=6"
    return ingest(IngestConfig(name="tiny", source=source, num_workers=1), store)


def weights(package_uri: str) -> dict[str, torch.Tensor]:
    return load_file(f"{package_uri}/weights.safetensors")


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["training.ema_decay=0.9", "optimizer.clip_norm=0.5"],
        [
            "optimizer.kind=sgd",
            "encoder.dropout=0.3",
            "optimizer.milestones=[0.5]",
            "optimizer.schedule=step",
        ],
        ["training.precision=bfloat16", "encoder.layer_norm=true", "encoder.pooling=gem"],
        ["optimizer.freeze_backbone_steps=3", "optimizer.kind=adam"],
        ["optimizer.freeze_backbone_steps=6", 'loss={"kind":"proxy_anchor"}'],
    ],
    ids=["plain", "average", "momentum-dropout-steps", "bfloat16", "thawed-before", "thawed-after"],
)
def test_a_killed_run_resumes_and_ends_bitwise_as_the_undisturbed_one(settings, dataset, tmp_path):
    config = experiment("smoke").overridden([*FAST, "augmentation.rotation=10", *settings])
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


def flip_two_bits(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0b11
    path.write_bytes(content)


def killed_at_eleven(config, dataset, store):
    """A run that has checkpoints after the steps 4 and 8; returns their folder."""

    def die(progress):
        if progress.step == 11:
            raise Killed

    with pytest.raises(Killed):
        ray_trainer.train(config, dataset, str(store), die)
    return store / "runs" / run_identity(config, dataset) / "checkpoints"


@pytest.mark.parametrize(
    ("damaged", "goes_on_at"), [(["step-00000008"], 5), (["step-00000004", "step-00000008"], 1)]
)
def test_damaged_checkpoints_are_named_and_left_out(damaged, goes_on_at, dataset, tmp_path, caplog):
    config = experiment("smoke").overridden(FAST)
    undisturbed = ray_trainer.train(config, dataset, str(tmp_path / "a"))
    checkpoints = killed_at_eleven(config, dataset, tmp_path / "b")
    for name in damaged:
        flip_two_bits(checkpoints / name / "encoder.safetensors")
    steps = []
    resumed = ray_trainer.train(config, dataset, str(tmp_path / "b"), lambda p: steps.append(p.step))
    assert steps[0] == goes_on_at
    assert resumed.package.fingerprint == undisturbed.package.fingerprint
    for name in damaged:
        assert f"{name}/encoder.safetensors is not" in caplog.text
    assert ("starting from step 0" in caplog.text) == (goes_on_at == 1)
    for name in storage.list_folders(str(checkpoints)):
        verify_checkpoint(checkpoints / name)


@pytest.mark.slow
def test_damaged_checkpoints_on_s3_are_left_out_too(dataset, s3_store, caplog):
    config = experiment("smoke").overridden(FAST)

    def die(progress):
        if progress.step == 11:
            raise Killed

    with pytest.raises(Killed):
        ray_trainer.train(config, dataset, s3_store, die)
    run = storage.join(s3_store, "runs", run_identity(config, dataset))
    weights = storage.join(run, "checkpoints", "step-00000008", "encoder.safetensors")
    storage.write_bytes(weights, storage.read_bytes(weights)[:-1] + b"x")
    steps = []
    ray_trainer.train(config, dataset, s3_store, lambda p: steps.append(p.step))
    assert steps[0] == 5
    assert "step-00000008/encoder.safetensors is not" in caplog.text


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda folder: (folder / "manifest.json").write_text("{")])
def test_a_checkpoint_that_cannot_be_opened_at_all_is_left_out(damage, dataset, tmp_path):
    config = experiment("smoke").overridden(FAST)
    checkpoints = killed_at_eleven(config, dataset, tmp_path)
    damage(checkpoints / "step-00000008")
    ray_trainer.train(config, dataset, str(tmp_path))


def test_a_checkpoint_that_cannot_be_published_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "written"
    (folder / "encoder.safetensors").mkdir(parents=True)  # cannot be read as a file
    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(OSError, match="encoder"):
        ray_trainer._publish_checkpoint(str(checkpoints), 4, folder)
    assert list(checkpoints.iterdir()) == []


def losses_after_damage(config, dataset, folders, damaged):
    """On this rank: the steps that are reported when rank 1 alone finds a checkpoint damaged."""
    rank = dist.get_rank()
    if rank == damaged:
        copies = [shutil.copytree(folder, f"{folder}-of-{rank}") for folder in folders]
        flip_two_bits(Path(copies[0]) / "optimizer.safetensors")
        folders = [Path(folder) for folder in copies]
    steps = []
    hooks = Hooks(report=lambda p: steps.append(p.step), save=lambda step, folder: None, restore=folders)
    train_loop(config, dataset, Worker(rank, 2), hooks)
    return steps


@pytest.mark.slow
def test_what_one_worker_finds_damaged_all_leave_out(dataset, tmp_path):
    config = experiment("smoke").overridden([*FAST, "training.num_workers=2"])
    saved = {}

    def save(step, folder):
        saved[step] = shutil.copytree(folder, tmp_path / str(step))

    train_loop(config, dataset, Worker(), Hooks(report=lambda p: None, save=save))
    steps, _ = run_ranks(2, losses_after_damage, config, dataset, [saved[8], saved[4]], 1)
    assert steps == list(range(5, 13))


def test_what_is_impossible_is_refused_before_the_run_has_a_folder(dataset, tmp_path):
    config = experiment("smoke").overridden(["sampler.classes_per_batch=64", "training.num_workers=2"])
    with pytest.raises(InvalidSetting, match=r"64.*classes.*\d+"):
        ray_trainer.train(config, dataset, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_requested_and_missing_is_refused(dataset, tmp_path):
    with pytest.raises(InvalidSetting, match="finds none"):
        ray_trainer.train(
            experiment("smoke").overridden([*FAST, "training.use_gpu=true"]), dataset, str(tmp_path)
        )


def test_progress_says_of_how_many_steps_and_what_is_left(dataset, tmp_path, caplog):
    caplog.set_level("INFO")
    ray_trainer.train(experiment("smoke").overridden(FAST), dataset, str(tmp_path))
    assert re.search(r"step 3 of 12, \d+ s left: loss", caplog.text)
    assert "step 12 of 12: loss" in caplog.text


def test_a_finished_run_is_not_run_again_and_says_so(dataset, tmp_path, caplog):
    caplog.set_level("INFO", logger="dml")
    config = experiment("smoke").overridden(FAST)
    first = ray_trainer.train(config, dataset, str(tmp_path))
    steps = []
    assert ray_trainer.train(config, dataset, str(tmp_path), lambda p: steps.append(p.step)) == first
    assert steps == []
    assert f"nothing to do, run {first.run} ended with loss" in caplog.text


def test_the_package_names_its_dataset_and_the_encoder_before_training(dataset, tmp_path):
    config = experiment("smoke").overridden(FAST)
    package = ray_trainer.train(config, dataset, str(tmp_path)).package
    assert package.dataset == dataset
    assert package.initial.fingerprint != package.fingerprint
    assert load_package(package.initial.uri).ref.dim == config.encoder.dim


def test_training_lowers_the_loss(dataset, tmp_path):
    losses = []
    config = experiment("smoke").overridden(
        ["training.num_steps=40", "training.log_every_steps=10", ONE_THREAD]
    )
    ray_trainer.train(config, dataset, str(tmp_path), lambda p: losses.append(p.loss))
    assert losses[-1] < 0.8 * losses[0]


KINDS = [
    "contrastive",
    "triplet_margin",
    "multi_similarity",
    "proxy_anchor",
    "softmax",
    "proxy_nca_plus_plus",
    "soft_triple",
]


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("classes", [1, 2])
def test_two_classes_can_be_trained_on_and_one_cannot(classes, tmp_path):
    config = experiment("smoke").overridden(["sampler.classes_per_batch=2", "sampler.samples_per_class=2"])
    source = str(class_folders(tmp_path / "images", classes=classes, per_class=2))
    ingested = IngestConfig(name="few", source=source, split={"kind": "none"}, num_workers=1)
    dataset = ingest(ingested, str(tmp_path))
    too_few = pytest.raises(InvalidData, match="at least 2 classes")
    with too_few if classes == 1 else nullcontext():
        require_trainable(config, dataset)


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


def test_checkpoints_are_whole_the_end_has_one_and_only_the_last_two_stay(dataset, tmp_path):
    config = experiment("smoke").overridden(
        ["training.num_steps=13", "training.checkpoint_every_steps=3", ONE_THREAD]
    )
    ray_trainer.train(config, dataset, str(tmp_path))
    folder = str(tmp_path / "runs" / run_identity(config, dataset) / "checkpoints")
    assert storage.list_names(folder) == ["step-00000012", "step-00000013"]
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


def test_a_run_killed_after_its_last_step_ends_without_another(dataset, tmp_path):
    config = experiment("smoke").overridden([*FAST, "training.ema_decay=0.9"])
    saved = {}

    def save(step, folder):
        saved[step] = shutil.copytree(folder, tmp_path / str(step))

    whole = train_loop(config, dataset, Worker(), Hooks(report=lambda p: None, save=save))
    assert list(saved) == [4, 8, 12]
    steps = []
    hooks = Hooks(report=lambda p: steps.append(p.step), save=save, restore=[saved[12]])
    again = train_loop(config, dataset, Worker(), hooks)
    assert steps == []
    assert again.loss == whole.loss
    torch.testing.assert_close(again.encoder.state_dict(), whole.encoder.state_dict(), rtol=0, atol=0)


def test_the_loss_at_the_end_is_that_of_the_last_steps_wherever_the_run_was_resumed(dataset, tmp_path):
    config = experiment("smoke").overridden([*FAST, "training.log_every_steps=10"])
    saved = {}

    def save(step, folder):
        saved[step] = shutil.copytree(folder, tmp_path / str(step), dirs_exist_ok=True)

    whole = train_loop(config, dataset, Worker(), Hooks(report=lambda p: None, save=save))
    assert whole.loss == pytest.approx(np.mean(loss_curve(FAST, dataset)[-10:]), rel=1e-12)
    for step in (4, 8, 12):
        hooks = Hooks(report=lambda p: None, save=save, restore=[saved[step]])
        assert train_loop(config, dataset, Worker(), hooks).loss == whole.loss, f"after step {step}"


def test_the_package_holds_the_moving_average(dataset, tmp_path):
    config = experiment("smoke").overridden(FAST)
    kept = {}

    def save(step, folder):
        kept.update({file.stem: load_file(file) for file in folder.glob("*.safetensors")})

    hooks = Hooks(report=lambda p: None, save=save)
    plain = train_loop(config, dataset, Worker(), hooks)
    assert "average" not in kept
    averaged = train_loop(config.overridden(["training.ema_decay=0.9"]), dataset, Worker(), hooks)
    last = kept["encoder"]["head.weight"]
    torch.testing.assert_close(last, plain.encoder.head.weight.detach(), rtol=0, atol=0)
    torch.testing.assert_close(averaged.encoder.head.weight, kept["average"]["encoder.head.weight"])
    assert not torch.equal(averaged.encoder.head.weight, last)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_frozen_backbone_rests_whole_and_then_moves(kind, dataset, tmp_path):
    config = experiment("smoke").overridden(
        [*FAST, "optimizer.freeze_backbone_steps=8", "optimizer.weight_decay=0.1", f"optimizer.kind={kind}"]
    )
    kept = {}

    def save(step, folder):
        kept[step] = load_file(folder / "encoder.safetensors")

    train_loop(config, dataset, Worker(), Hooks(report=lambda p: None, save=save))
    start = initial_encoder(config).state_dict()
    for name, value in start.items():
        rests = torch.equal(kept[8][name], value)
        assert rests == name.startswith("backbone."), name
        assert not torch.equal(kept[12][name], kept[8][name]), name


def test_dropout_draws_from_seed_step_and_rank_alone(dataset):
    config = experiment("smoke").overridden([*FAST, "training.num_steps=3", "encoder.dropout=0.5"])
    losses = []
    hooks = Hooks(report=lambda p: losses.append(p.loss), save=lambda step, folder: None)
    train_loop(config, dataset, Worker(), hooks)
    torch.manual_seed(99)
    train_loop(config, dataset, Worker(), hooks)
    assert losses[:3] == losses[3:]
    train_loop(config.overridden(["encoder.dropout=0"]), dataset, Worker(), hooks)
    assert losses[0] != losses[6]


@pytest.mark.slow
def test_a_compiled_encoder_trains_alike_and_keeps_its_weights_names(dataset):
    config = experiment("smoke").overridden([*FAST, "training.num_steps=4", "training.ema_decay=0.9"])
    losses = []
    hooks = Hooks(report=lambda p: losses.append(p.loss), save=lambda step, folder: None)
    plain = train_loop(config, dataset, Worker(), hooks)
    compiled = train_loop(config.overridden(["training.compile=true"]), dataset, Worker(), hooks)
    assert losses[4:] == pytest.approx(losses[:4], rel=1e-3)
    assert compiled.encoder.state_dict().keys() == plain.encoder.state_dict().keys()
    assert initial_encoder(config).state_dict().keys() == plain.encoder.state_dict().keys()


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
    frozen = [*CHUNKED, "encoder.freeze_batch_norm=true", 'loss={"kind":"proxy_anchor"}']
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

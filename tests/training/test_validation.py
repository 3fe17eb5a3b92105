"""Held-out training classes judge the steps, alike for any number of workers; the best step is kept."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dml.config import EncoderConfig, ExperimentConfig, IngestConfig, ValidationConfig
from dml.data.dataset import read_rows
from dml.data.ingest import ingest
from dml.errors import InvalidSetting
from dml.metrics.retrieval import retrieval_metrics
from dml.models.encoder import Encoder
from dml.models.package import load_package
from dml.presets import experiment
from dml.refs import BestStep, DatasetRef
from dml.training import ray_trainer
from dml.training.loop import Hooks, train_on
from dml.training.meter import Progress
from dml.training.spawn import run_ranks
from dml.training.train_data import DatasetTrainData
from dml.training.validation import ValidationSet, held_out_classes, validate
from dml.training.worker import Worker

SETTINGS = [
    "training.threads_per_worker=1",
    "training.num_steps=12",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=4",
    'training.validation={"fraction":0.2,"every_steps":3,"metric":"map_at_r"}',
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    store = str(tmp_path_factory.mktemp("store"))
    return ingest(IngestConfig(name="tiny", source="glyphs:classes=24,per_class=6", num_workers=1), store)


def test_the_held_out_classes_follow_from_seed_and_number_alone():
    assert np.array_equal(held_out_classes(100, 0.1, 3), held_out_classes(100, 0.1, 3))
    assert held_out_classes(100, 0.1, 3).sum() == 10
    assert not np.array_equal(held_out_classes(100, 0.1, 3), held_out_classes(100, 0.1, 4))
    assert held_out_classes(5, 0.01, 0).sum() == 2, "one class has nothing to be told from"


def test_over_many_seeds_every_class_is_held_out_about_equally_often():
    times = sum(held_out_classes(20, 0.2, seed).astype(int) for seed in range(500))
    assert times.min() > 60, "100 expected, deviation 9"
    assert times.max() < 140


def test_too_few_classes_are_refused():
    with pytest.raises(InvalidSetting, match="has 3"):
        held_out_classes(3, 0.1, 0)


def test_a_set_where_no_class_has_a_second_image_is_refused():
    with pytest.raises(InvalidSetting, match="class with two images"):
        ValidationSet(np.arange(4), lambda rows: torch.zeros(len(rows), 1, 28, 28))


def test_held_out_classes_are_training_classes_that_are_not_learnt(dataset):
    config = experiment("smoke").overridden(SETTINGS)
    train_data = DatasetTrainData(config, dataset)
    rows = read_rows(dataset, columns=["class_id", "split"])
    split, class_of = np.array(rows["split"]), rows["class_id"].to_numpy()
    all_classes = set(class_of[split == "train"])
    learnt = set(class_of[train_data.rows.positions])
    assert learnt < all_classes
    assert len(learnt) == train_data.num_classes == train_data.rows.class_ids.max() + 1
    assert len(set(train_data.validation.class_ids)) == len(all_classes) - len(learnt) == 2
    assert len(train_data.validation.class_ids) + len(train_data.rows.positions) == (split == "train").sum()
    assert (split[train_data.rows.positions] == "train").all()


def test_batches_of_one_attribute_are_of_learnt_classes_and_still_of_one_attribute(tmp_path):
    # So many classes that every style has enough for a batch.
    source = "glyphs:classes=60,per_class=6"
    dataset = ingest(IngestConfig(name="larger", source=source, num_workers=1), str(tmp_path))
    # A class is drawn in each style: whose rows the values are shows in every batch.
    sampler = (
        '{"kind":"attribute","attribute":"style","several_values":"split","classes_per_batch":2,'
        '"samples_per_class":2}'
    )
    config = experiment("smoke").overridden([*SETTINGS, "training.num_steps=6", f"sampler={sampler}"])
    train_data = DatasetTrainData(config, dataset)
    style = read_rows(dataset, columns=["style"])["style"].to_pylist()
    batches = train_data.batches(Worker(), 0)
    for _, labels, positions in batches:
        assert set(positions) <= set(train_data.rows.positions)
        assert labels.max() < train_data.num_classes
        assert len({style[position] for position in positions}) == 1
    batches.close()


def noise_set() -> ValidationSet:
    images = torch.randn(150, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    class_ids = np.arange(150) % 30
    return ValidationSet(
        class_ids, lambda rows: images[rows] + torch.from_numpy(class_ids[rows])[:, None, None, None] / 30
    )


def value_on(rank: int, world_size: int) -> float:
    torch.set_num_threads(1)
    encoder = Encoder(EncoderConfig(dim=8), channels=1)
    config = ValidationConfig(metric="map_at_r")
    return validate(encoder, config, noise_set(), 5, Worker(rank, world_size)).value


def value_on_a_rank() -> float:
    return value_on(torch.distributed.get_rank(), torch.distributed.get_world_size())


def test_the_value_is_that_of_the_metrics_room_on_one_worker_and_to_the_bit_on_two():
    encoder, held = Encoder(EncoderConfig(dim=8), channels=1).eval(), noise_set()
    with torch.no_grad():
        embeddings = encoder(held.images(np.arange(150)))
    expected = retrieval_metrics(embeddings, torch.from_numpy(held.class_ids)).map_at_r
    alone = value_on(0, 1)
    assert 0 < alone < 1
    assert alone == pytest.approx(expected, abs=1e-3)
    assert run_ranks(2, value_on_a_rank) == [alone, alone]


def test_validation_leaves_the_modes_of_training_as_they_were():
    encoder = Encoder(EncoderConfig(dim=8), channels=1).train()
    encoder.backbone.eval()
    validate(encoder, ValidationConfig(), noise_set(), 1, Worker())
    assert encoder.training
    assert encoder.head.training
    assert not any(module.training for module in encoder.backbone.modules())


class Fading(DatasetTrainData):
    """The held-out classes look as different as day and night at first, and alike from then on."""

    def __init__(self, config: ExperimentConfig, dataset: DatasetRef, clear: int) -> None:
        super().__init__(config, dataset)
        class_ids, self.clear = self.validation.class_ids, clear
        self.validation = ValidationSet(class_ids, self.images)

    def images(self, rows: np.ndarray) -> torch.Tensor:
        self.clear -= 1
        noise = torch.randn(len(rows), 1, 28, 28, generator=torch.Generator().manual_seed(0))
        if self.clear < 0:
            return noise
        return 0.1 * noise + torch.from_numpy(self.validation.class_ids[rows])[:, None, None, None]


def test_the_best_step_is_kept_shipped_and_remembered_after_a_kill(dataset: DatasetRef, tmp_path: Path):
    config = experiment("smoke").overridden([*SETTINGS, "encoder.backbone.width=8"])
    kept, actual = {}, {}

    def save(step: int, folder: Path) -> None:
        kept[step] = shutil.copytree(folder, tmp_path / str(step))

    def watch(progress: Progress) -> None:
        if progress.validation:
            actual[progress.step] = progress.validation.value

    hooks = Hooks(report=watch, save=save)
    whole = train_on(Fading(config, dataset, clear=1), config, Worker(), hooks, run="a")
    assert list(actual) == [3, 6, 9, 12]
    assert whole.best == BestStep(step=3, metric="map_at_r", value=actual[3])
    assert actual[3] > max(actual[6], actual[9], actual[12])
    hooks = Hooks(report=watch, save=lambda step, folder: None, restore=[kept[8]])
    resumed = train_on(Fading(config, dataset, clear=0), config, Worker(), hooks, run="a")
    assert resumed.best == whole.best
    torch.testing.assert_close(resumed.encoder.state_dict(), whole.encoder.state_dict(), rtol=0, atol=0)
    assert int(whole.encoder.state_dict()["backbone.1.num_batches_tracked"]) == 3
    last = load_file(kept[12] / "encoder.safetensors")
    assert not torch.equal(whole.encoder.head.weight, last["head.weight"])


def test_the_package_gives_the_value_of_the_best_step(dataset, tmp_path):
    config = experiment("smoke").overridden(SETTINGS)
    trained = ray_trainer.train(config, dataset, str(tmp_path))
    package = load_package(trained.package.uri)
    held_out = DatasetTrainData(config, dataset).validation
    again = validate(package.encoder, config.training.validation, held_out, 0, Worker())
    assert again.value == trained.best.value


def test_progress_names_the_best_step_for_the_curves(dataset, tmp_path):
    metrics = []
    config = experiment("smoke").overridden(SETTINGS)
    ray_trainer.train(config, dataset, str(tmp_path), lambda p: metrics.append(p.metrics()))
    assert "best_step" not in metrics[0]
    assert {"validation_map_at_r", "best_map_at_r", "best_step"} <= metrics[2].keys()
    assert "validation_map_at_r" not in metrics[3]

"""The experiment chosen for a dataset suits its images, its classes and the machine."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dml.config import IngestConfig, TorchvisionConfig
from dml.data.ingest import ingest
from dml.errors import IncompatibleArtifact, InvalidData, MissingArtifact
from dml.models.backbones import build_backbone, identify_network
from dml.presets import experiment
from dml.recommend import DatasetProfile, Weights, find_weights, profile_dataset, recommend
from dml.training.loop import decisive_settings
from dml.training.train_data import require_trainable
from tests.data.pictures import class_folders, picture, write

PHOTOS = DatasetProfile(rows=4052, classes=98, images_per_class=41, side=96, is_color=True)
SQUEEZENET = Weights("squeezenet1_1", Path("squeezenet.safetensors"))


def test_photos_start_from_the_weights_at_hand_the_head_first():
    config = recommend(PHOTOS, SQUEEZENET, has_gpu=False).config
    assert config.encoder.backbone.weights == SQUEEZENET.file
    assert config.preprocessing.color == "RGB"
    assert config.preprocessing.crop == 96
    assert 0 < config.optimizer.freeze_backbone_steps < config.training.num_steps
    assert config.training.num_steps == 16 * 4052 // 112


def test_a_gpu_gets_larger_images_where_the_dataset_has_them():
    large = replace(PHOTOS, side=600)
    assert recommend(large, SQUEEZENET, has_gpu=True).config.preprocessing.crop == 224
    assert recommend(large, SQUEEZENET, has_gpu=False).config.preprocessing.crop == 96
    assert recommend(PHOTOS, SQUEEZENET, has_gpu=True).config.preprocessing.crop == 96


def test_photos_without_weights_train_in_color_and_the_reason_says_what_is_missing():
    recommended = recommend(PHOTOS, None, has_gpu=False)
    assert recommended.config.encoder.backbone.kind == "conv4"
    assert recommended.config.preprocessing.color == "RGB"
    assert "--weights FILE" in recommended.reason


def test_grayscale_images_train_a_small_network_from_scratch_even_beside_weights():
    recommended = recommend(replace(PHOTOS, is_color=False), SQUEEZENET, has_gpu=False)
    assert recommended.config.encoder.backbone.kind == "conv4"
    assert recommended.config.preprocessing.color == "L"
    assert "grayscale" in recommended.reason


def test_omniglot_gets_the_experiment_whose_result_is_published():
    """docs/pretrained.md names the row of docs/results.md as that of the default."""
    omniglot = DatasetProfile(rows=12660, classes=633, images_per_class=20, side=105, is_color=False)
    chosen = recommend(omniglot, None, has_gpu=False).config
    assert decisive_settings(chosen) == decisive_settings(experiment("omniglot"))


@pytest.mark.parametrize(("classes", "images_per_class"), [(2, 1), (3, 2), (10, 3), (1000, 50)])
def test_a_batch_fits_the_classes(classes, images_per_class):
    profile = replace(
        PHOTOS, rows=classes * images_per_class, classes=classes, images_per_class=images_per_class
    )
    sampler = recommend(profile, None, has_gpu=False).config.sampler
    assert sampler.classes_per_batch == min(32, classes)
    assert sampler.samples_per_class == min(max(images_per_class, 2), 4)


def test_few_images_still_get_100_steps_and_many_no_more_than_the_limit():
    few, many = replace(PHOTOS, rows=10), replace(PHOTOS, rows=10**7)
    assert recommend(few, SQUEEZENET, has_gpu=False).config.training.num_steps == 100
    assert recommend(many, SQUEEZENET, has_gpu=False).config.training.num_steps == 600


@pytest.mark.parametrize("color", [True, False])
def test_the_profile_is_read_from_the_training_images(tmp_path, color):
    mode = "RGB" if color else "L"
    write(
        tmp_path / "images",
        {f"class{n // 3}/{n}.png": picture(n, size=(40, 30), mode=mode) for n in range(18)},
    )
    dataset = ingest(IngestConfig(name="shop", source=str(tmp_path / "images")), str(tmp_path / "store"))
    profile = profile_dataset(dataset)
    assert profile == DatasetProfile(
        rows=dataset.splits["train"].rows, classes=3, images_per_class=3, side=30, is_color=color
    )
    require_trainable(recommend(profile, None, has_gpu=False).config, dataset)


def test_a_dataset_without_training_images_is_refused(tmp_path):
    class_folders(tmp_path / "images", classes=2, per_class=2)
    config = IngestConfig(name="shop", source=str(tmp_path / "images"), split="classes:1")
    with pytest.raises(InvalidData, match="'test'"):
        profile_dataset(ingest(config, str(tmp_path / "store")))


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_a_weights_file_is_known_by_its_tensors(tmp_path, name):
    network = build_backbone(TorchvisionConfig(name=name), channels=3).module.extractor
    classifier = {"fc.weight": torch.zeros(10, 512)}
    save_file({**network.state_dict(), **classifier}, tmp_path / "weights.safetensors")
    assert identify_network(tmp_path / "weights.safetensors") == name
    assert find_weights(tmp_path / "weights.safetensors", has_gpu=False).network == name


def test_weights_of_another_network_and_no_file_are_refused(tmp_path):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(IncompatibleArtifact, match=r"squeezenet1_1.*conv\.weight.*kind=timm"):
        find_weights(tmp_path / "weights.safetensors", has_gpu=False)
    with pytest.raises(MissingArtifact, match="nothing"):
        find_weights(tmp_path / "nothing", has_gpu=False)

"""The experiment that suits a dataset: its profile and weights in, a configuration and a reason out."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from dml.config import (
    AugmentationConfig,
    BackboneConfig,
    Conv4Config,
    EncoderConfig,
    ExperimentConfig,
    OptimizerConfig,
    PreprocessingConfig,
    SamplerConfig,
    TorchvisionConfig,
    TorchvisionNetwork,
    TrainingConfig,
    Tuning,
    loss_config,
)
from dml.data.dataset import read_images, read_rows
from dml.data.schema import TRAIN
from dml.errors import InvalidData
from dml.models.backbones import find_cached_weights, identify_network
from dml.preprocessing import decode
from dml.presets import experiment
from dml.refs import DatasetRef, ModelRef
from dml.training.initial import start_from

_SAMPLED_IMAGES = 64
_COLOR_DIFFERENCE = 8
"""Between the channels of a pixel, of 255: JPEG gives gray pictures less."""
_COLOR_SHARE = 0.05
"""Of images or pixels with a larger difference, from which on there is color."""
_PASSES = 16
"""Over the training images: 600 steps on CARS196's half, where more began to overfit."""


@dataclass(frozen=True)
class DatasetProfile:
    """What decides the choice: sizes of the split train, and of a sample of its images."""

    rows: int
    classes: int
    images_per_class: int
    """Median."""
    side: int
    """Median of the shorter side, in pixels."""
    is_color: bool

    def __str__(self) -> str:
        color = "color" if self.is_color else "grayscale"
        return (
            f"{self.classes} training classes of {self.images_per_class} images (median), {color}, "
            f"{self.side} pixels (shorter side)"
        )


@dataclass(frozen=True)
class Weights:
    """ImageNet weights of a torchvision network on this machine."""

    network: TorchvisionNetwork
    file: Path


@dataclass(frozen=True)
class Recommendation:
    """An experiment, and why it was chosen, in one line."""

    config: ExperimentConfig
    reason: str


def profile_dataset(dataset: DatasetRef) -> DatasetProfile:
    """Look at a dataset's split train and at 64 of its images; the same version gives the same profile.

    Raises:
        InvalidData: the split is empty.
    """
    rows = read_rows(dataset, split=TRAIN, columns=["class_id", "width", "height"])
    if not len(rows):
        raise InvalidData(
            f"An experiment is chosen from the training images; {dataset} has the splits "
            f"{sorted(dataset.splits)}. Ingest it with another --split."
        )
    per_class = Counter(rows["class_id"].to_pylist())
    sides = np.minimum(rows["width"].to_numpy(), rows["height"].to_numpy())
    sampled = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLED_IMAGES)).astype(int)
    images = read_images(dataset, rows["position"].to_numpy()[sampled].tolist())
    return DatasetProfile(
        rows=len(rows),
        classes=len(per_class),
        images_per_class=int(median(per_class.values())),
        side=int(median(sides.tolist())),
        is_color=sum(_has_color(image) for image in images) > _COLOR_SHARE * len(images),
    )


def recommend_for(
    dataset: DatasetRef, weights: Path | None = None, *, has_gpu: bool | None = None
) -> Recommendation:
    """The experiment for a dataset on this machine; None: a GPU where torch finds one."""
    if has_gpu is None:
        has_gpu = torch.cuda.is_available()
    return recommend(profile_dataset(dataset), find_weights(weights, has_gpu=has_gpu), has_gpu=has_gpu)


def recommend_from(
    dataset: DatasetRef, model: ModelRef, tune: Tuning, *, has_gpu: bool | None = None
) -> Recommendation:
    """The experiment that starts from a registered model; its encoder and preprocessing are the model's.

    Args:
        dataset: to train on.
        model: trained here or imported.
        tune: what is trained of it.
        has_gpu: allows more steps; None: where torch finds one.

    Raises:
        IncompatibleArtifact: the model cannot be trained.
    """
    if has_gpu is None:
        has_gpu = torch.cuda.is_available()
    profile = profile_dataset(dataset)
    config = start_from(_tuned(profile, has_gpu=has_gpu), model, tune)
    rate = _backbone_rate(config.encoder.backbone)
    if tune == "lora":
        rate = min(10 * rate, 2e-3)  # of zero at first, and small: they learn faster than weights should
    config = config.overridden([f"optimizer.learning_rate={rate}"])
    what = {"frozen": "the head alone", "lora": "the head and low-rank adapters", "whole": "all of it"}[tune]
    return Recommendation(config, f"{config.name}: {profile}; it starts from {model} and trains {what}.")


def _backbone_rate(backbone: BackboneConfig) -> float:
    """The learning rate of weights that were trained before."""
    if backbone.kind == "conv4":
        return 1e-3
    if backbone.kind == "torchvision":
        return 4e-4 if backbone.name == "squeezenet1_1" else 1e-4
    is_transformer = backbone.kind == "transformers" or any(
        part in backbone.name for part in _TRANSFORMERS_IN_TIMM
    )
    return 1e-5 if is_transformer else 1e-4


_TRANSFORMERS_IN_TIMM = ("vit", "deit", "eva", "beit", "swin")


def _tuned(profile: DatasetProfile, *, has_gpu: bool) -> ExperimentConfig:
    sampler = _sampler(profile, classes_per_batch=28)
    steps = _steps(profile, sampler, most=7500 if has_gpu else 600)
    return ExperimentConfig(
        name="fine-tuning",
        augmentation=_CROPS if profile.is_color else experiment("omniglot").augmentation,
        sampler=sampler,
        loss=loss_config("proxy_anchor"),
        optimizer=OptimizerConfig(
            head_learning_rate=2e-3,
            loss_learning_rate=1e-2,
            warmup_steps=steps // 12,
            freeze_backbone_steps=steps // 12,
        ),
        training=TrainingConfig(num_steps=steps),
    )


def _has_color(image: bytes) -> bool:
    pixels = np.asarray(decode(image, "RGB"), dtype=np.int16)
    return bool((np.ptp(pixels, axis=2) > _COLOR_DIFFERENCE).mean() > _COLOR_SHARE)


def find_weights(file: Path | None, *, has_gpu: bool) -> Weights | None:
    """The pretrained weights to start from: the file that was given, else what torchvision has in its cache.

    Args:
        file: weights of one of `TorchvisionNetwork`; None: look in the cache.
        has_gpu: a ResNet50 is preferred there; without, SqueezeNet 1.1, which is ten times as fast.

    Raises:
        MissingArtifact, CorruptArtifact: the file is not there, or is no weights file.
        IncompatibleArtifact: it belongs to none of these networks.
    """
    if file is not None:
        return Weights(identify_network(file), file)
    preferred: tuple[TorchvisionNetwork, ...] = ("resnet50", "resnet18", "squeezenet1_1", "googlenet")
    if not has_gpu:
        preferred = ("squeezenet1_1", "resnet18")
    for network in preferred:
        if (cached := find_cached_weights(network)) is not None:
            return Weights(network, cached)
    return None


def recommend(profile: DatasetProfile, weights: Weights | None, *, has_gpu: bool) -> Recommendation:
    """Choose an experiment.

    Grayscale images train a conv4 from scratch at 28 pixels. Photos start from pretrained weights: the head
    learns alone first, then everything does. Photos without weights train a conv4 in color at 64 pixels.

    Example:
        >>> drawings = DatasetProfile(rows=9640, classes=482, images_per_class=20, side=105, is_color=False)
        >>> recommend(drawings, None, has_gpu=False).config.encoder.backbone.kind
        'conv4'
    """
    if not profile.is_color:
        config, why = _from_scratch(profile, PreprocessingConfig.model_validate(_GRAY_28)), _WHY_GRAY
    elif weights is None:
        config, why = _from_scratch(profile, _color(64)), _WHY_NO_WEIGHTS
    else:
        config = _fine_tuned(profile, weights, has_gpu=has_gpu)
        why = f"{weights.network} starts from {weights.file.name} at {config.preprocessing.crop} pixels"
    return Recommendation(config, f"{config.name}: {profile}; {why}.")


_GRAY_28 = experiment("omniglot").preprocessing.model_dump()
_WHY_GRAY = "a conv4 from scratch at 28 pixels, since ImageNet weights help little without color"
_WHY_NO_WEIGHTS = (
    "a conv4 from scratch at 64 pixels, since no pretrained weights are at hand: give --weights FILE for a "
    "far better embedding"
)


_CROPS = AugmentationConfig(random_resized_crop=(0.3, 1.0), horizontal_flip=True)


def _color(side: int) -> PreprocessingConfig:
    return PreprocessingConfig(resize=side, crop=side)


def _from_scratch(profile: DatasetProfile, preprocessing: PreprocessingConfig) -> ExperimentConfig:
    sampler = _sampler(profile, classes_per_batch=32)
    affine = experiment("omniglot").augmentation
    return ExperimentConfig(
        name="drawings" if preprocessing.color == "L" else "photos-from-scratch",
        preprocessing=preprocessing,
        augmentation=affine if preprocessing.color == "L" else _CROPS,
        encoder=EncoderConfig(backbone=Conv4Config(), dim=64),
        sampler=sampler,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20),
        training=TrainingConfig(num_steps=_steps(profile, sampler, most=1000)),
    )


def _fine_tuned(profile: DatasetProfile, weights: Weights, *, has_gpu: bool) -> ExperimentConfig:
    sampler = _sampler(profile, classes_per_batch=28)
    steps = _steps(profile, sampler, most=7500 if has_gpu else 600)
    side = min(224 if has_gpu else 96, max(profile.side // 32 * 32, 64))
    backbone = TorchvisionConfig(name=weights.network, weights=weights.file)
    return ExperimentConfig(
        name=f"photos-{weights.network}",
        preprocessing=_color(side),
        augmentation=_CROPS,
        encoder=EncoderConfig(
            backbone=backbone,
            pooling="avg+max",
            dim=512 if has_gpu else 128,
            freeze_batch_norm=weights.network != "squeezenet1_1",  # which has none
        ),
        sampler=sampler,
        loss=loss_config("proxy_anchor"),
        optimizer=OptimizerConfig(
            learning_rate=_backbone_rate(backbone),
            head_learning_rate=2e-3,
            loss_learning_rate=1e-2,
            warmup_steps=steps // 12,
            freeze_backbone_steps=steps // 12,
        ),
        training=TrainingConfig(num_steps=steps),
    )


def _sampler(profile: DatasetProfile, *, classes_per_batch: int) -> SamplerConfig:
    return SamplerConfig(
        classes_per_batch=max(min(classes_per_batch, profile.classes), 2),
        samples_per_class=max(min(4, profile.images_per_class), 2),
    )


def _steps(profile: DatasetProfile, sampler: SamplerConfig, *, most: int) -> int:
    """So many passes over the training images, but at least 100 steps."""
    return min(max(_PASSES * profile.rows // sampler.batch_size, 100), most)

"""Experiments to start from: each function returns one whole configuration, named as users type it."""

from collections.abc import Callable

from dml.config import (
    AugmentationConfig,
    Conv4Config,
    EncoderConfig,
    ExperimentConfig,
    MultiSimilarityConfig,
    OptimizerConfig,
    PreprocessingConfig,
    ProxyAnchorConfig,
    SamplerConfig,
    TorchvisionConfig,
    TrainingConfig,
    TripletConfig,
)
from dml.errors import InvalidSetting

_GLYPHS_28 = PreprocessingConfig(color="L", resize=28, crop=28, mean=(0.5,), std=(0.5,))
_SMALL_AFFINE = AugmentationConfig(rotation=10, translation=0.08, scaling=(0.9, 1.1))


def smoke() -> ExperimentConfig:
    """Seconds on any machine and any dataset: does the road hold?"""
    return ExperimentConfig(
        name="smoke",
        preprocessing=_GLYPHS_28,
        encoder=EncoderConfig(backbone=Conv4Config(width=32), dim=32),
        sampler=SamplerConfig(classes_per_batch=8, samples_per_class=4),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        training=TrainingConfig(num_steps=30, checkpoint_every_steps=10, log_every_steps=10),
    )


def glyphs() -> ExperimentConfig:
    """Drawn characters of the demo: a minute on two cores."""
    return ExperimentConfig(
        name="glyphs",
        preprocessing=_GLYPHS_28,
        encoder=EncoderConfig(backbone=Conv4Config(), dim=64),
        sampler=SamplerConfig(classes_per_batch=32, samples_per_class=4),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20),
        training=TrainingConfig(num_steps=400, checkpoint_every_steps=100),
    )


def omniglot() -> ExperimentConfig:
    """Handwritten characters, 28 pixels, conv4, 64 dimensions."""
    return ExperimentConfig(
        name="omniglot",
        preprocessing=_GLYPHS_28,
        augmentation=_SMALL_AFFINE,
        encoder=EncoderConfig(backbone=Conv4Config(), dim=64),
        sampler=SamplerConfig(classes_per_batch=32, samples_per_class=4),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20),
        training=TrainingConfig(num_steps=1000),
    )


def cars196_squeezenet() -> ExperimentConfig:
    """CARS196 at 96 pixels on SqueezeNet 1.1, for machines without a GPU; set encoder.backbone.weights."""
    return ExperimentConfig(
        name="cars196-squeezenet",
        preprocessing=PreprocessingConfig(resize=96, crop=96),
        augmentation=AugmentationConfig(random_resized_crop=(0.3, 1.0), horizontal_flip=True),
        encoder=EncoderConfig(backbone=TorchvisionConfig(name="squeezenet1_1"), pooling="avg+max", dim=128),
        sampler=SamplerConfig(classes_per_batch=28, samples_per_class=4),
        loss=ProxyAnchorConfig(),
        optimizer=OptimizerConfig(
            learning_rate=4e-4, head_learning_rate=2e-3, loss_learning_rate=1e-2, warmup_steps=50
        ),
        training=TrainingConfig(num_steps=600),
    )


def _resnet50(name: str, dim: int) -> ExperimentConfig:
    """Roth et al. 2020, arXiv:2002.08473: frozen batch norm, 224-pixel crops, batches of 112, Adam 1e-5."""
    return ExperimentConfig(
        name=name,
        augmentation=AugmentationConfig(random_resized_crop=(0.08, 1.0), horizontal_flip=True),
        encoder=EncoderConfig(
            backbone=TorchvisionConfig(name="resnet50", pretrained=True), dim=dim, freeze_batch_norm=True
        ),
        sampler=SamplerConfig(classes_per_batch=28, samples_per_class=4),
        optimizer=OptimizerConfig(learning_rate=1e-5, weight_decay=4e-4, schedule="constant"),
        training=TrainingConfig(num_steps=7500),
    )


def resnet50_triplet() -> ExperimentConfig:
    """ResNet50, 128 dimensions, semi-hard triplets."""
    return _resnet50("resnet50-triplet", 128).model_copy(update={"loss": TripletConfig()})


def resnet50_multi_similarity() -> ExperimentConfig:
    """ResNet50, 512 dimensions, multi-similarity with its miner."""
    return _resnet50("resnet50-multi-similarity", 512).model_copy(update={"loss": MultiSimilarityConfig()})


def resnet50_proxy_anchor() -> ExperimentConfig:
    """ResNet50, 512 dimensions, Proxy-Anchor with its average plus maximum pooling and rates."""
    base = _resnet50("resnet50-proxy-anchor", 512)
    return base.model_copy(
        update={
            "loss": ProxyAnchorConfig(),
            "encoder": base.encoder.model_copy(update={"pooling": "avg+max"}),
            "optimizer": OptimizerConfig(learning_rate=1e-4, loss_learning_rate=1e-2, schedule="constant"),
        }
    )


_ALL: tuple[Callable[[], ExperimentConfig], ...] = (
    smoke,
    glyphs,
    omniglot,
    cars196_squeezenet,
    resnet50_triplet,
    resnet50_multi_similarity,
    resnet50_proxy_anchor,
)


def names() -> dict[str, str]:
    """Every preset's name and what it is for."""
    return {preset.__name__.replace("_", "-"): (preset.__doc__ or "").strip() for preset in _ALL}


def experiment(name: str) -> ExperimentConfig:
    """The preset of a name; raises InvalidSetting with the names there are."""
    for preset in _ALL:
        if preset.__name__.replace("_", "-") == name:
            return preset()
    raise InvalidSetting(f"preset must be one of {', '.join(names())}; got {name!r}.")

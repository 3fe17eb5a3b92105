"""Experiments to start from: each function returns one whole configuration, named as users type it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from dml.config import (
    AugmentationConfig,
    Conv4Config,
    EncoderConfig,
    EvaluationConfig,
    ExperimentConfig,
    LossConfig,
    OptimizerConfig,
    PreprocessingConfig,
    SamplerConfig,
    ShuffledSamplerConfig,
    TorchvisionConfig,
    TrainingConfig,
    loss_config,
)
from dml.errors import InvalidSetting, did_you_mean

_GLYPHS_28 = PreprocessingConfig(color="L", resize=28, crop=28, mean=(0.5,), std=(0.5,))
_SMALL_AFFINE = AugmentationConfig(rotation=10, translation=0.08, scaling=(0.9, 1.1))


def smoke() -> ExperimentConfig:
    """Seconds on any machine and any dataset: does everything work together?"""
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


def circle(loss: str = "softmax") -> ExperimentConfig:
    """Ten digits in two dimensions, to look at what a loss does: `dml circles` draws it for each loss."""
    # On a circle ten classes are at best 36 degrees apart, cosine 0.81, distance 0.62. The usual margins and
    # scales want more room: ArcFace at 0.5 and 64 leaves neighbouring classes on top of each other.
    settings = {
        "arcface": {"margin": 0.2, "scale": 10.0},
        "normalized_softmax": {"temperature": 0.1},
        "cosface": {"margin": 0.05, "scale": 10.0},
        "margin": {"beta": 0.8, "alpha": 0.2},
    }.get(loss, {})
    config = ExperimentConfig(
        name="circle",
        preprocessing=_GLYPHS_28,
        encoder=EncoderConfig(backbone=Conv4Config(width=32), dim=2),
        sampler=SamplerConfig(classes_per_batch=10, samples_per_class=12),
        optimizer=OptimizerConfig(learning_rate=2e-3, loss_learning_rate=2e-2, warmup_steps=20),
        training=TrainingConfig(num_steps=600),
    )
    return config.overridden([f"loss={json.dumps({'kind': loss, **settings})}", f"name=circle-{loss}"])


def cars196_squeezenet() -> ExperimentConfig:
    """CARS196 at 96 pixels on SqueezeNet 1.1, for machines without a GPU; set encoder.backbone.weights."""
    return ExperimentConfig(
        name="cars196-squeezenet",
        preprocessing=PreprocessingConfig(resize=96, crop=96),
        augmentation=AugmentationConfig(random_resized_crop=(0.3, 1.0), horizontal_flip=True),
        encoder=EncoderConfig(backbone=TorchvisionConfig(name="squeezenet1_1"), pooling="avg+max", dim=128),
        sampler=SamplerConfig(classes_per_batch=28, samples_per_class=4),
        loss=loss_config("proxy_anchor"),
        optimizer=OptimizerConfig(
            learning_rate=4e-4, head_learning_rate=2e-3, loss_learning_rate=1e-2, warmup_steps=50
        ),
        training=TrainingConfig(num_steps=600),
    )


# --- published recipes on ResNet50, which want a GPU ----------------------------------------------------

_TRAINING_IMAGES = {"cub200": 5864, "cars196": 8054, "sop": 59551, "in-shop": 25882}
_EVALUATIONS = {
    "sop": EvaluationConfig(recall_at=(1, 10, 100, 1000)),
    "in-shop": EvaluationConfig(recall_at=(1, 10, 20, 30, 50), role_attribute="role"),
}
"""Of datasets whose publications have other K, or a query and a gallery set."""
_CONFUSEZIUS = "Confusezius' Deep-Metric-Learning-Baselines"


_IMAGENET_RESNET50 = TorchvisionConfig(name="resnet50", pretrained="IMAGENET1K_V1")  # the papers' weights


def _resnet50(name: str, dim: int, dataset: str = "") -> ExperimentConfig:
    """Roth et al. 2020, arXiv:2002.08473: frozen batch norm, 224-pixel crops, batches of 112, Adam 1e-5."""
    return ExperimentConfig(
        name=name,
        augmentation=AugmentationConfig(random_resized_crop=(0.08, 1.0), horizontal_flip=True),
        encoder=EncoderConfig(
            backbone=_IMAGENET_RESNET50,
            dim=dim,
            freeze_batch_norm=True,
        ),
        sampler=SamplerConfig(classes_per_batch=28, samples_per_class=4),
        optimizer=OptimizerConfig(learning_rate=1e-5, weight_decay=4e-4, schedule="constant"),
        training=TrainingConfig(num_steps=7500),
        evaluation=_EVALUATIONS.get(dataset, EvaluationConfig()),
    )


def resnet50_triplet() -> ExperimentConfig:
    """ResNet50, 128 dimensions, semi-hard triplets."""
    return _resnet50("resnet50-triplet", 128).model_copy(update={"loss": loss_config("triplet_margin")})


def resnet50_multi_similarity() -> ExperimentConfig:
    """ResNet50, 512 dimensions, multi-similarity with its miner."""
    return _resnet50("resnet50-multi-similarity", 512).model_copy(
        update={"loss": loss_config("multi_similarity")}
    )


def resnet50_proxy_anchor() -> ExperimentConfig:
    """ResNet50, 512 dimensions, Proxy-Anchor with its average plus maximum pooling and rates."""
    base = _resnet50("resnet50-proxy-anchor", 512)
    return base.model_copy(
        update={
            "loss": loss_config("proxy_anchor"),
            "encoder": base.encoder.model_copy(update={"pooling": "avg+max"}),
            "optimizer": OptimizerConfig(learning_rate=1e-4, loss_learning_rate=1e-2, schedule="constant"),
        }
    )


def _steps(dataset: str, epochs: int, batch_size: int) -> int:
    """Epochs of whole batches, as the papers' loaders count them."""
    return epochs * (_TRAINING_IMAGES[dataset] // batch_size)


@dataclass(frozen=True)
class _Baseline:
    """A row of Confusezius' table: the loss, the rate of its parameters, and each dataset's schedule."""

    title: str
    loss: LossConfig
    loss_rate: float
    epochs: dict[str, tuple[int, int]]
    """How many there are, and the one after which the rates fall."""
    shuffled: bool = False
    """Batches of images without regard to their classes, instead of P x K."""


# After the repository's defaults and its sample_training_runs.sh, where Proxy-NCA is missing on SOP and
# In-Shop for their many classes, and triplets are semi-hard in name only (CVPR2020_PADS issue 1). What
# differs: inner products of N-pair are of unit vectors, and Proxy-NCA sees every image once per epoch, there
# chance.
_USUAL = {"cub200": (50, 30), "cars196": (70, 45), "sop": (40, 25), "in-shop": (40, 25)}
_BASELINES = {
    "margin-distance": _Baseline(
        "Margin loss, distance-weighted,",
        loss_config("margin", per_class=True),
        loss_rate=5e-4,
        epochs=_USUAL,
    ),
    "triplet-softhard": _Baseline(
        "Triplets, soft-hard,",
        loss_config("triplet_margin", mining="soft_hard"),
        loss_rate=5e-4,
        epochs=_USUAL,
    ),
    "n-pair": _Baseline(
        "N-pair loss",
        loss_config("n_pair"),
        loss_rate=5e-4,
        epochs={**_USUAL, "cub200": (55, 35), "cars196": (85, 55)},
    ),
    "proxy-nca": _Baseline(
        "Proxy-NCA",
        loss_config("proxy_nca"),
        loss_rate=1e-5,
        epochs=dict.fromkeys(_USUAL, (40, 25)),
        shuffled=True,
    ),
}


def _baseline(name: str, dataset: str, row: _Baseline) -> ExperimentConfig:
    """ResNet50, 128 dimensions, Adam 1e-5 that falls to 0.3 of it; the loss's parameters do not decay.

    Adam's decay is a part of the gradient there, not beside it as in AdamW.
    """
    base, (epochs, fall) = _resnet50(name, 128, dataset), row.epochs[dataset]
    optimizer = OptimizerConfig(
        kind="adam",
        learning_rate=1e-5,
        loss_learning_rate=row.loss_rate,
        weight_decay=4e-4,
        loss_weight_decay=0.0,
        schedule="step",
        milestones=(fall / epochs,),
        gamma=0.3,
    )
    sampler = ShuffledSamplerConfig(batch_size=112) if row.shuffled else base.sampler
    steps = _steps(dataset, epochs, sampler.batch_size)
    training = TrainingConfig(num_steps=steps, precision="tf32")
    changes = {"loss": row.loss, "sampler": sampler, "optimizer": optimizer, "training": training}
    return base.model_copy(update=changes)


def _proxy_anchor(name: str, dataset: str) -> ExperimentConfig:
    """Kim et al. 2020, arXiv:2003.13911, and their repository's runs with ResNet50.

    Batches of 120 images without regard to classes. AdamW halves its rate every so many of 60 epochs; head
    and proxies learn alone for five. SOP and In-Shop are published with Inception only: their settings, on
    ResNet50.
    """
    rate, fall_every, gamma, alone, frozen = {
        "cub200": (1e-4, 5, 0.5, 5, True),
        "cars196": (1e-4, 10, 0.5, 5, True),
        "sop": (6e-4, 20, 0.25, 1, False),
        "in-shop": (6e-4, 20, 0.25, 1, False),
    }[dataset]
    base, epochs = _resnet50(name, 512, dataset), 60
    sampler = ShuffledSamplerConfig(batch_size=120)
    return base.model_copy(
        update={
            "loss": loss_config("proxy_anchor"),
            "encoder": base.encoder.model_copy(update={"pooling": "avg+max", "freeze_batch_norm": frozen}),
            "sampler": sampler,
            "optimizer": OptimizerConfig(
                learning_rate=rate,
                loss_learning_rate=100 * rate,
                schedule="step",
                milestones=tuple(epoch / epochs for epoch in range(fall_every, epochs, fall_every)),
                gamma=gamma,
                freeze_backbone_steps=_steps(dataset, alone, sampler.batch_size),
            ),
            "training": TrainingConfig(num_steps=_steps(dataset, epochs, sampler.batch_size)),
        }
    )


def _multi_similarity(name: str, dataset: str) -> ExperimentConfig:
    """Wang et al. 2019, arXiv:1904.06627: 512 dimensions, batches of 80 with K = 5, Adam 1e-5."""
    base = _resnet50(name, 512, dataset)
    return base.model_copy(
        update={
            "loss": loss_config("multi_similarity"),
            "sampler": SamplerConfig(classes_per_batch=16, samples_per_class=5),
            "optimizer": OptimizerConfig(
                kind="adam", learning_rate=1e-5, weight_decay=5e-4, schedule="constant"
            ),
        }
    )


def _family() -> dict[str, tuple[str, Callable[[], ExperimentConfig]]]:
    """Presets of a recipe on a dataset, `cub200-proxy-anchor`: what each is for, and how it is made."""
    family: dict[str, tuple[str, Callable[[], ExperimentConfig]]] = {}
    for dataset in _TRAINING_IMAGES:
        for recipe, row in _BASELINES.items():
            name = f"{dataset}-{recipe}"
            about = f"{row.title} on ResNet50, 128 dimensions, as {_CONFUSEZIUS} train it on {dataset}."
            family[name] = about, partial(_baseline, name, dataset, row)
        for recipe, title, make in (
            ("proxy-anchor", "Proxy-Anchor", _proxy_anchor),
            ("multi-similarity", "Multi-similarity", _multi_similarity),
        ):
            name = f"{dataset}-{recipe}"
            family[name] = (
                f"{title} as published, ResNet50, 512 dimensions, {dataset}.",
                partial(make, name, dataset),
            )
    return family


def market1501_triplet() -> ExperimentConfig:
    """Person re-identification on ResNet50 at 256 x 128 pixels, batch-hard triplets, for Market-1501.

    Images, batches and optimizer as Luo et al. 2019, arXiv:1903.07071, configs/softmax_triplet.yml. Their sum
    of losses, random erasing, last stride of 1 and batch norm neck are left out.
    """
    batch, epochs, epoch = 64, 120, 12936 // 64
    return ExperimentConfig(
        name="market1501-triplet",
        preprocessing=PreprocessingConfig(resize=128, crop=128, height=256, crop_mode="squash"),
        augmentation=AugmentationConfig(horizontal_flip=True, translation=10 / 256),
        encoder=EncoderConfig(backbone=_IMAGENET_RESNET50, head="none", dim=2048),
        sampler=SamplerConfig(classes_per_batch=batch // 4, samples_per_class=4),
        loss=loss_config("triplet_margin", mining="batch_hard", margin=0.3),
        optimizer=OptimizerConfig(
            kind="adam",
            learning_rate=3.5e-4,
            weight_decay=5e-4,
            warmup_steps=10 * epoch,
            schedule="step",
            milestones=(40 / epochs, 70 / epochs),
            gamma=0.1,
        ),
        training=TrainingConfig(num_steps=epochs * epoch),
        evaluation=EvaluationConfig(
            recall_at=(1, 5, 10), full_map=True, role_attribute="role", same_camera_attribute="camera"
        ),
    )


# --- by name -------------------------------------------------------------------------------------------

AUTO = "auto"
"""In place of a preset's name: what suits the dataset, see `dml.recommend`."""
_SMOKE = "smoke:"
_SMOKE_STEPS = 30


def smoke_of(config: ExperimentConfig) -> ExperimentConfig:
    """The same in seconds: conv4 on 28 pixels, small batches, 30 steps with all that happens on the way.

    Loss, mining, optimiser, schedule and pooling stay; steps that are counted shrink in proportion.
    """

    def shrunk(steps: int) -> int:
        return min(-(-steps * _SMOKE_STEPS // config.training.num_steps), _SMOKE_STEPS - 1)

    shuffled = isinstance(config.sampler, ShuffledSamplerConfig)
    small_batch = {"batch_size": 32} if shuffled else {"classes_per_batch": 8}
    memory, validation = config.memory, config.training.validation
    changes: dict[str, Any] = {
        "name": f"smoke-{config.name}",
        "preprocessing": {**config.preprocessing.model_dump(), "resize": 28, "crop": 28, "height": None},
        "encoder": {
            **config.encoder.model_dump(),
            "backbone": Conv4Config(width=32),
            "dim": 32,
            "pooling": "avg" if config.encoder.pooling == "own" else config.encoder.pooling,
        },
        "sampler": config.sampler.model_dump() | small_batch,
        "memory": memory and {**memory.model_dump(), "start_after": shrunk(memory.start_after)},
        "optimizer": {
            **config.optimizer.model_dump(),
            "warmup_steps": shrunk(config.optimizer.warmup_steps),
            "freeze_backbone_steps": shrunk(config.optimizer.freeze_backbone_steps),
            "milestones": tuple(
                stone if stone < 1 else shrunk(int(stone)) for stone in config.optimizer.milestones
            ),
        },
        "training": {
            **config.training.model_dump(),
            "num_steps": _SMOKE_STEPS,
            "checkpoint_every_steps": 10,
            "log_every_steps": 10,
            "validation": validation and {**validation.model_dump(), "every_steps": 10},
        },
    }
    return ExperimentConfig.model_validate({**config.model_dump(), **changes})


_ALL: tuple[Callable[[], ExperimentConfig], ...] = (
    smoke,
    glyphs,
    omniglot,
    circle,
    cars196_squeezenet,
    resnet50_triplet,
    resnet50_multi_similarity,
    resnet50_proxy_anchor,
    market1501_triplet,
)


def _presets() -> dict[str, tuple[str, Callable[[], ExperimentConfig]]]:
    alone = {preset.__name__.replace("_", "-"): ((preset.__doc__ or "").strip(), preset) for preset in _ALL}
    return {**alone, **_family()}


def names() -> dict[str, str]:
    """Every preset's name and what it is for; each also has a small one, `smoke:NAME`."""
    return {name: about for name, (about, _) in _presets().items()}


def experiment(name: str) -> ExperimentConfig:
    """The preset of a name, or its small version `smoke:NAME`; raises InvalidSetting for an unknown name."""
    preset = _presets().get(name.removeprefix(_SMOKE))
    if preset is None:
        raise InvalidSetting(
            f"preset must be one of {', '.join(names())}, or {_SMOKE} and one of them; got {name!r}."
            f"{did_you_mean(name, [*names(), *(_SMOKE + each for each in names())])}"
        )
    config = preset[1]()
    return smoke_of(config) if name.startswith(_SMOKE) else config


PresetName = Annotated[
    str, Field(json_schema_extra={"enum": [AUTO, *names(), *(_SMOKE + name for name in names())]})
]
"""A parameter that is one of them, or `auto`, so that a form can offer a list."""
